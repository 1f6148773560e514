//! A ledger in SQL: transfers between accounts, each a transaction that also writes down what it did.
//!
//! What a transfer is follows from seed, writer and number, so a lost, doubled, torn or invented commit shows in the journal,
//! and half a commit in the balances.

use std::collections::BTreeMap;

use hafs_tests::Numbers;

use crate::rounds::Writer;
use crate::session::Session;

const ACCOUNTS: u64 = 40;
const START_BALANCE: i64 = 1000;

/// How a database wants a transaction to begin.
pub(crate) type Begin = &'static str;

/// The empty ledger.
pub(crate) fn create(session: &mut Session) {
    let mut sql = String::from(
        "CREATE TABLE account(id INTEGER PRIMARY KEY, balance BIGINT NOT NULL);
         CREATE TABLE journal(writer INTEGER, seq BIGINT, source INTEGER, target INTEGER, amount INTEGER,
                              note TEXT, PRIMARY KEY(writer, seq));
         CREATE INDEX by_note ON journal(substr(note, 1, 16));\n",
    );
    for id in 0..ACCOUNTS {
        sql.push_str(&format!(
            "INSERT INTO account VALUES({id}, {START_BALANCE});\n"
        ));
    }
    session.ask(&sql).expect("an empty ledger");
}

/// One transfer.
#[derive(Debug, PartialEq, Eq)]
struct Transfer {
    source: u64,
    target: u64,
    amount: u64,
    note: String,
}

impl Transfer {
    fn new(seed: u64, writer: u64, seq: u64) -> Self {
        let mut numbers = Numbers::of(seed, &[writer, seq]);
        let source = numbers.below(ACCOUNTS);
        let target = (source + 1 + numbers.below(ACCOUNTS - 1)) % ACCOUNTS;
        let amount = 1 + numbers.below(99);
        // Mostly small rows; some that go beyond a page.
        let len_max = [40, 400, 400, 4000, 30_000][usize::try_from(numbers.below(5)).expect("5")];
        let len = usize::try_from(16 + numbers.below(len_max)).expect("small");
        Self {
            source,
            target,
            amount,
            note: numbers.text(len),
        }
    }

    fn sql(&self, begin: Begin, writer: u64, seq: u64) -> String {
        let Self {
            source,
            target,
            amount,
            note,
        } = self;
        let change = |account: u64| {
            let sign = if account == *source { '-' } else { '+' };
            format!("UPDATE account SET balance = balance {sign} {amount} WHERE id = {account};")
        };
        // Lower account first: two transfers never wait for each other in a circle.
        let (low, high) = (change(*source.min(target)), change(*source.max(target)));
        format!(
            "{begin};\n{low}\n{high}\n\
             INSERT INTO journal VALUES({writer}, {seq}, {source}, {target}, {amount}, '{note}');\nCOMMIT;"
        )
    }
}

/// A client that makes transfers.
#[derive(Debug)]
pub(crate) struct Clerk {
    seed: u64,
    number: u64,
    begin: Begin,
    /// Now and then it asks for one of these besides.
    chores: &'static [&'static str],
    /// Transfers acknowledged.
    pub(crate) acknowledged: u64,
    /// One more was asked for.
    pending: bool,
    /// Not between rounds.
    pub(crate) session: Option<Session>,
}

impl Clerk {
    pub(crate) fn new(
        seed: u64,
        number: u64,
        begin: Begin,
        chores: &'static [&'static str],
    ) -> Self {
        Self {
            seed,
            number,
            begin,
            chores,
            acknowledged: 0,
            pending: false,
            session: None,
        }
    }
}

impl Writer for Clerk {
    fn step(&mut self) -> Result<(), String> {
        let session = self.session.as_mut().expect("a session for the round");
        let seq = self.acknowledged + 1;
        let mut numbers = Numbers::of(self.seed, &[self.number, seq, 1]);
        if numbers.below(40) == 0 && !self.chores.is_empty() {
            let chore = numbers.below(self.chores.len() as u64);
            session.ask(self.chores[usize::try_from(chore).expect("few")])?;
        }
        self.pending = true;
        let transfer = Transfer::new(self.seed, self.number, seq);
        session.ask(&transfer.sql(self.begin, self.number, seq))?;
        self.acknowledged = seq;
        self.pending = false;
        Ok(())
    }
}

/// Compares the ledger with what the clerks were told, and takes over what it finds where both are allowed.
pub(crate) fn verify(session: &mut Session, clerks: &mut [Clerk]) -> Result<(), String> {
    let mut balances = BTreeMap::from_iter((0..ACCOUNTS).map(|id| (id, START_BALANCE)));
    for clerk in clerks {
        let Clerk { seed, number, .. } = *clerk;
        let rows = session.ask(&format!(
            "SELECT seq, source, target, amount, note FROM journal WHERE writer = {number} ORDER BY seq;"
        ))?;
        let found = rows.len() as u64;
        let allowed = clerk.acknowledged..=clerk.acknowledged + u64::from(clerk.pending);
        if !allowed.contains(&found) {
            return Err(format!(
                "writer {number}: {found} transfers, but {allowed:?} were acknowledged or under way"
            ));
        }
        for (seq, row) in (1..).zip(&rows) {
            let transfer = Transfer::new(seed, number, seq);
            let Transfer {
                source,
                target,
                amount,
                note,
            } = &transfer;
            if *row != format!("{seq}|{source}|{target}|{amount}|{note}") {
                return Err(format!("writer {number}: transfer {seq} is {row}"));
            }
            let amount = i64::try_from(*amount).expect("below 100");
            *balances.get_mut(source).expect("an account") -= amount;
            *balances.get_mut(target).expect("an account") += amount;
        }
        clerk.acknowledged = found;
        clerk.pending = false;
    }
    let wanted: Vec<String> = balances
        .iter()
        .map(|(id, balance)| format!("{id}|{balance}"))
        .collect();
    let rows = session.ask("SELECT id, balance FROM account ORDER BY id;")?;
    if rows == wanted {
        Ok(())
    } else {
        Err(format!("balances are {rows:?} instead of {wanted:?}"))
    }
}

/// Proves that [`verify`] sees a lost commit, half a commit and a changed byte; each is undone by the caller's `ROLLBACK`.
pub(crate) fn verify_sees_damage(session: &mut Session, clerks: &mut [Clerk]) {
    let last = clerks[0].acknowledged;
    assert!(last > 0, "the first writer was acknowledged something");
    for damage in [
        format!("DELETE FROM journal WHERE writer = 0 AND seq = {last};"),
        "UPDATE account SET balance = balance + 1 WHERE id = 7;".to_owned(),
        "UPDATE journal SET note = 'X' || substr(note, 2) WHERE writer = 0 AND seq = 1;".to_owned(),
    ] {
        session.ask(&format!("BEGIN;\n{damage}")).expect("damage");
        let seen = verify(session, clerks).expect_err("damage was done");
        eprintln!("seen: {:.100}", seen);
        session.ask("ROLLBACK;").expect("damage undone");
        // A verification that found less has taken nothing over.
        assert_eq!(verify(session, clerks), Ok(()));
    }
}
