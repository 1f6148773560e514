//! The collector on a disk that others have nearly filled.

use std::time::Duration;

use hafs_fs::{Caller, Ino, Profile, SetAttr, SharedCache, Volume, VolumeIdentity, VolumeSettings};
use hafs_protocol::{Epoch, Lineage, NodeId, StoreId, VolumeId};
use hafs_tests::{Disk, Scratch, requirement};

use crate::disk::Others;
use crate::{GIB, MIB, MIB_LEN, block_bytes, wait_until};

/// A fortieth of it is the longest segment: much more than what others leave.
const DISK_BYTES: u64 = 2 * GIB;
const LEFT_BYTES: u64 = 16 * MIB;
const BALLAST_BYTES: u64 = MIB;
const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn the_collector_works_with_what_others_leave() {
    if !requirement::mounts_work("collecting on a full disk") {
        return;
    }
    let scratch = Scratch::new();
    let disk = Disk::new(&scratch, DISK_BYTES);
    let mut others = Others::on(&disk);
    let identity = VolumeIdentity {
        volume: VolumeId::from_bytes([1; 16]),
        store: StoreId::from_bytes([2; 16]),
        node: NodeId::from_bytes([3; 16]),
        lineage: Lineage::from_bytes([4; 16]),
    };
    let settings = VolumeSettings {
        state_buffer_bytes: BALLAST_BYTES,
        log_file_bytes: MIB,
        cache: SharedCache::new(MIB_LEN),
        ..VolumeSettings::new(GIB, Profile::Auto)
    };
    let path = disk.path().join("v");
    Volume::create(&path, &identity, &settings, Epoch(1)).unwrap();
    let open = |epoch| Volume::open(&path, &identity, &settings, Epoch(epoch)).unwrap();
    let make = |volume: &Volume, name: &[u8], len: u64| {
        let mode = libc::S_IFREG | 0o644;
        let made = volume
            .mknod(Caller::ROOT, Ino::ROOT, name, mode, 0)
            .unwrap();
        let mut bytes = vec![0; MIB_LEN];
        for mib in 0..len {
            block_bytes(made.ino.0, mib, &mut bytes);
            volume
                .write(made.ino, mib * MIB, &bytes, false, false)
                .unwrap();
        }
        made.ino
    };

    // A segment of which half is dead, sealed by the end of its process.
    let volume = open(2);
    let ino = make(&volume, b"half", 8);
    let cut = SetAttr {
        size: Some(4 * MIB),
        ..SetAttr::default()
    };
    volume.setattr(Caller::ROOT, ino, &cut).unwrap();
    volume.close().unwrap();
    drop(volume);
    // And one that is appended to, without the space that it took for that: nothing has happened for some time.
    let volume = open(3);
    make(&volume, b"whole", 1);
    wait_until("what is not used is given back", LIMIT, || {
        volume.space().unwrap().held_bytes <= BALLAST_BYTES
    });
    others.take_all_but(&disk, LEFT_BYTES);

    let before = volume.status().segment_bytes;
    let won = volume.collect().unwrap();
    assert!(won >= 8 * MIB, "{won}");
    let after = volume.status().segment_bytes;
    assert!(after <= before - 4 * MIB, "{before} -> {after}");
    let held = volume.space().unwrap().held_bytes;
    assert!(held <= LEFT_BYTES / 2, "{held}");
    let mut wanted = vec![0; MIB_LEN];
    for mib in 0..4 {
        block_bytes(ino.0, mib, &mut wanted);
        assert!(volume.read(ino, mib * MIB, 1 << 20).unwrap() == wanted);
    }
    others.free_all();
    let report = volume.check(&mut |_, _| {}).unwrap();
    assert_eq!(report.problems, vec![]);
    volume.close().unwrap();
    drop(volume);
    disk.end();
}
