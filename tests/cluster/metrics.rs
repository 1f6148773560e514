//! Metrics: the text is what OpenMetrics asks for, says what happened, and is what `docs/metrics.md` lists.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use hafs_tests::binaries::checkout;
use hafs_tests::http::get;
use hafs_tests::{Daemon, Launch, Scratch, requirement};
use rustix::fs::fgetxattr;
use rustix::io::Errno;
use serde_json::Value;

/// A family of samples.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    help: String,
    samples: Vec<Sample>,
}

#[derive(Debug, Clone)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

fn scrape(socket: &Path) -> BTreeMap<String, Family> {
    let (head, body) = get(
        UnixStream::connect(socket).expect("hafsd listens"),
        "/metrics",
    );
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let kind = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(head.to_lowercase().contains(kind), "{head}");
    parse(&body)
}

/// Reads OpenMetrics 1.0 as strictly as its text says: one block a family, its type before its samples, suffixes by type,
/// buckets that grow up to the count, no sample twice, `# EOF` at the end and nowhere else.
fn parse(text: &str) -> BTreeMap<String, Family> {
    let text = text.strip_suffix("# EOF\n").expect("the end is marked");
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    let mut seen = BTreeSet::new();
    for line in text.lines() {
        if let Some(about) = line.strip_prefix("# ") {
            let mut words = about.splitn(3, ' ');
            let [what, name, rest] = [(); 3].map(|()| words.next().expect("three words"));
            if name != current {
                assert!(!families.contains_key(name), "{name} comes in two blocks");
                name.clone_into(&mut current);
            }
            let family = families.entry(name.to_owned()).or_default();
            assert!(family.samples.is_empty(), "`{line}` comes after samples");
            match what {
                "HELP" => rest.clone_into(&mut family.help),
                "TYPE" => rest.clone_into(&mut family.kind),
                "UNIT" => assert!(name.ends_with(&format!("_{rest}")), "{line}"),
                _ => panic!("what is `{line}`?"),
            }
            continue;
        }
        let sample = sample(line);
        assert!(
            seen.insert(line.rsplit_once(' ').expect("a value").0.to_owned()),
            "twice: {line}"
        );
        let family = families.get_mut(&current).expect("a sample has a family");
        let suffix = sample.name.strip_prefix(&current);
        let suffix = suffix.unwrap_or_else(|| panic!("`{line}` in the block of {current}"));
        let suffixes: &[&str] = match family.kind.as_str() {
            "counter" => &["_total"],
            "gauge" => &[""],
            "info" => &["_info"],
            "histogram" => &["_bucket", "_sum", "_count"],
            kind => panic!("{current} is a {kind}"),
        };
        assert!(suffixes.contains(&suffix), "`{line}` is no {}", family.kind);
        assert!(sample.value >= 0.0 && sample.value.is_finite(), "{line}");
        family.samples.push(sample);
    }
    families
        .values()
        .filter(|family| family.kind == "histogram")
        .for_each(assert_cumulative);
    families
}

fn sample(line: &str) -> Sample {
    let (key, value) = line.rsplit_once(' ').expect("a value");
    let (name, labels) = match key.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}').expect("labels end")),
        None => (key, ""),
    };
    let plain =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    assert!(plain(name), "{line}");
    let labels: BTreeMap<String, String> = labels
        .split(',')
        .filter(|label| !label.is_empty())
        .map(|label| {
            let (name, value) = label.split_once('=').expect("a label");
            assert!(plain(name), "{line}");
            let value = value
                .strip_prefix('"')
                .and_then(|value| value.strip_suffix('"'));
            (name.to_owned(), value.expect("in quotes").to_owned())
        })
        .collect();
    Sample {
        name: name.to_owned(),
        labels,
        value: value
            .parse()
            .unwrap_or_else(|error| panic!("{error}: {line}")),
    }
}

fn assert_cumulative(family: &Family) {
    let mut last: BTreeMap<BTreeMap<String, String>, (f64, f64)> = BTreeMap::new();
    let of = |suffix: &'static str| {
        let samples = family.samples.iter();
        samples
            .filter(move |sample| sample.name.ends_with(suffix))
            .cloned()
    };
    for mut bucket in of("_bucket") {
        let bound = bucket.labels.remove("le").expect("a bucket has a bound");
        let bound: f64 = bound.replace("+Inf", "inf").parse().expect("a number");
        let before = last.insert(bucket.labels.clone(), (bound, bucket.value));
        if let Some((bound_before, count)) = before {
            assert!(bound_before < bound && count <= bucket.value, "{bucket:?}");
        }
    }
    for count in of("_count") {
        assert_eq!(
            last.remove(&count.labels),
            Some((f64::INFINITY, count.value)),
            "{count:?}"
        );
    }
    assert!(last.is_empty(), "buckets without a count: {last:?}");
}

/// The value of the sample with these labels, 0 if there is none.
fn value(families: &BTreeMap<String, Family>, name: &str, labels: &[(&str, &str)]) -> f64 {
    let labels: BTreeMap<String, String> = labels
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let samples = families.values().flat_map(|family| &family.samples);
    samples
        .filter(|sample| sample.name == name && sample.labels == labels)
        .map(|sample| sample.value)
        .sum()
}

#[test]
fn metrics_tell_what_was_done() {
    if !requirement::mounts_work("metrics of a mounted volume") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    daemon.create_volume("pg");
    let mount = daemon.mount("pg", &scratch.dir("mnt"));
    let before = scrape(daemon.socket());
    let mut file = File::create(mount.path().join("a")).unwrap();
    file.write_all(&vec![7; 300_000]).unwrap();
    file.sync_all().unwrap();
    let missing = fgetxattr(&file, "user.none", &mut [0; 8]).unwrap_err();
    assert_eq!(missing, Errno::NODATA);
    let (v, op) = (("volume", "pg"), |op| ("op", op));
    // A request counts once it is answered: the application may be quicker.
    let began = Instant::now();
    let after = loop {
        let after = scrape(daemon.socket());
        let done = |name| {
            value(
                &after,
                "hafs_volume_request_duration_seconds_count",
                &[op(name), v],
            )
        };
        if done("fsync") > 0.0 && done("getxattr") > 0.0 {
            break after;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{after:?}");
    };
    let grew = |name: &str, labels: &[(&str, &str)]| {
        value(&after, name, labels) - value(&before, name, labels)
    };
    let requests = "hafs_volume_request_duration_seconds_count";
    assert!(grew("hafs_volume_written_bytes_total", &[v]) >= 300_000.0);
    assert!(grew(requests, &[op("write"), v]) >= 1.0);
    assert!(grew(requests, &[op("fsync"), v]) >= 1.0);
    assert!(grew("hafs_volume_sync_duration_seconds_count", &[v]) >= 1.0);
    let nodata = [op("getxattr"), v, ("errno", "ENODATA")];
    assert!(
        grew("hafs_volume_request_errors_total", &nodata) >= 1.0,
        "{after:?}"
    );
    assert!(grew("hafs_volume_used_bytes", &[v]) >= 300_000.0);
    assert!(grew("hafs_volume_head_lsn", &[v]) >= 1.0);
    for (name, want) in [
        ("hafs_volume_size_bytes", (10_u64 << 30) as f64),
        ("hafs_volume_mounts", 1.0),
        ("hafs_volume_failed", 0.0),
    ] {
        assert_eq!(
            value(&after, name, &[v]).to_bits(),
            f64::to_bits(want),
            "{name}"
        );
    }
    for name in [
        "hafs_volume_reserve_bytes",
        "hafs_volume_log_bytes",
        "hafs_volume_state_bytes",
    ] {
        assert!(value(&after, name, &[v]) > 0.0, "{name}: {after:?}");
    }
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    assert_eq!(
        value(&after, "hafs_build_info", &version).to_bits(),
        1_f64.to_bits()
    );
    drop(file);
    mount.unmount();
    daemon.stop();
}

#[test]
fn the_page_lists_every_metric_as_it_is_served() {
    let page = fs::read_to_string(checkout().join("docs/metrics.md")).expect("it is there");
    let listed: BTreeMap<String, (String, BTreeSet<String>, String)> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `hafs_"))
        .filter(|line| !line.contains("` | the ") && line.matches(" | ").count() == 3)
        .map(|line| {
            let cells: Vec<&str> = line.trim_end_matches(" |").split(" | ").collect();
            let name = format!("hafs_{}", cells[0].trim_end_matches('`'));
            let labels = cells[2].split(", ").map(|label| label.trim_matches('`'));
            let labels = labels.filter(|label| !label.is_empty()).map(str::to_owned);
            (
                name,
                (cells[1].to_owned(), labels.collect(), cells[3].to_owned()),
            )
        })
        .collect();
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    daemon.create_volume("v");
    let served = scrape(daemon.socket());
    let names = |map: Vec<&String>| map.into_iter().cloned().collect::<Vec<_>>();
    assert_eq!(
        names(listed.keys().collect()),
        names(served.keys().collect())
    );
    for (name, family) in &served {
        let (kind, labels, help) = &listed[name];
        assert_eq!((kind, help), (&family.kind, &family.help), "{name}");
        for sample in &family.samples {
            let mut is: BTreeSet<String> = sample.labels.keys().cloned().collect();
            is.remove("le");
            assert_eq!(*labels, is, "{name}");
        }
    }
    daemon.stop();
}

#[test]
fn a_port_of_the_loopback_serves_metrics_and_nothing_else() {
    let scratch = Scratch::new();
    let launch = Launch::new(scratch.path());
    launch
        .clone()
        .argument("--metrics=0.0.0.0:9464")
        .start_refused()
        .refused(
            1,
            &["0.0.0.0:9464", "why:", "network", "next:", "127.0.0.1:9464"],
        );
    assert!(!launch.data().exists(), "refused before anything was made");
    let daemon = launch.argument("--metrics=127.0.0.1:0").start();
    let address = daemon.log().lines().find_map(|line| {
        let event: Value = serde_json::from_str(line).ok()?;
        (event["message"] == "metrics are served")
            .then(|| event["address"].as_str().map(str::to_owned))?
    });
    let address = address.expect("the log tells the port");
    let connect = || TcpStream::connect(&address).expect("hafsd listens");
    let (head, body) = get(connect(), "/metrics");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(parse(&body).contains_key("hafs_build"));
    let (head, _) = get(connect(), "/v1/volumes");
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
    daemon.stop();
}
