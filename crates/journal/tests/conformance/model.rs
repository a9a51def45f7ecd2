//! Random scripts on both engines, compared with a list.

use proptest::prelude::*;
use unanimity_journal::Bounds;

use crate::{Batch, Storage, code, contents, proptest_config, read, slices};

#[derive(Clone, Debug)]
enum Action {
    Append(Vec<Vec<u8>>),
    AppendAt(u64),
    AppendAndTruncate(Vec<Vec<u8>>, u64),
    Truncate(u64),
    ReadFrom(u64),
    Harden,
    Reopen,
}

fn action() -> impl Strategy<Value = Action> {
    let record = prop::collection::vec(any::<u8>(), 0..6000);
    prop_oneof![
        8 => prop::collection::vec(record.clone(), 0..4).prop_map(Action::Append),
        1 => (0..20u64).prop_map(Action::AppendAt),
        2 => (prop::collection::vec(record, 0..4), 0..20u64)
            .prop_map(|(records, before)| Action::AppendAndTruncate(records, before)),
        2 => (0..20u64).prop_map(Action::Truncate),
        2 => (0..20u64).prop_map(Action::ReadFrom),
        1 => Just(Action::Harden),
        2 => Just(Action::Reopen),
    ]
}

/// A journal as a list.
#[derive(Default)]
struct Model {
    forgotten: u64,
    batches: Vec<Batch>,
}

impl Model {
    fn bounds(&self) -> Bounds {
        let first = self.forgotten + 1;
        Bounds { first, next: first + self.batches.len() as u64 }
    }

    fn from(&self, from: u64) -> Option<Vec<Batch>> {
        let bounds = self.bounds();
        let inside = (bounds.first..=bounds.next).contains(&from);
        inside.then(|| self.batches[(from - bounds.first) as usize..].to_vec())
    }

    fn truncate(&mut self, before: u64) -> bool {
        let bounds = self.bounds();
        if before > bounds.first && before <= bounds.next {
            self.batches.drain(..(before - bounds.first) as usize);
            self.forgotten = before - 1;
        }
        before <= bounds.next
    }
}

fn play(storage: &Storage, script: &[(bool, Action)]) {
    let mut engine = storage.open();
    let mut models = [Model::default(), Model::default()];
    for (second, action) in script {
        let shard = if *second { 40_000 } else { 1 };
        let model = &mut models[usize::from(*second)];
        let next = model.bounds().next;
        match action {
            Action::Append(records) => {
                engine.append(shard, next, &slices(records)).unwrap();
                model.batches.push(Batch { position: next, records: records.clone() });
            }
            Action::AppendAt(position) => {
                let expected = if *position == next { "ok" } else { "journal_conflict" };
                assert_eq!(code(engine.append(shard, *position, &[])), expected);
                if *position == next {
                    model.batches.push(Batch { position: next, records: Vec::new() });
                }
            }
            Action::AppendAndTruncate(records, before) => {
                let done = engine.append_and_truncate(shard, next, &slices(records), Some(*before));
                assert_eq!(done.is_ok(), model.truncate(*before));
                if done.is_ok() {
                    model.batches.push(Batch { position: next, records: records.clone() });
                }
            }
            Action::Truncate(before) => {
                assert_eq!(engine.truncate(shard, *before).is_ok(), model.truncate(*before));
            }
            Action::ReadFrom(from) => {
                assert_eq!(read(&mut *engine, shard, *from).ok(), model.from(*from));
            }
            Action::Harden => engine.harden(shard).unwrap(),
            Action::Reopen => {
                drop(engine);
                engine = storage.open();
            }
        }
        assert_eq!(engine.bounds(shard).unwrap(), model.bounds());
    }
    for (shard, model) in [(1, &models[0]), (40_000, &models[1])] {
        let expected = (model.bounds(), model.batches.clone());
        assert_eq!(contents(&mut *engine, shard).unwrap(), expected);
    }
}

proptest! {
    #![proptest_config(proptest_config())]

    #[test]
    fn every_engine_behaves_like_a_list(
        script in prop::collection::vec((any::<bool>(), action()), 1..40)
    ) {
        for storage in Storage::all() {
            play(&storage, &script);
        }
    }
}
