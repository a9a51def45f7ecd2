//! The contract of an engine, case by case, on both; and the memory engine's faults.

use std::path::PathBuf;

use unanimity_journal::{AppendFault, Bounds, Engine, JournalError, MemoryEngine, batch};

use crate::{Storage, code, contents, fill, read, records, slices};

#[test]
fn what_is_appended_is_read_and_survives_a_reopen() {
    for storage in Storage::all() {
        let mut engine = storage.open();
        assert_eq!(contents(&mut *engine, 0).unwrap(), (Bounds { first: 1, next: 1 }, Vec::new()));
        let batches = [records(&["a", "", "c"]), records(&[]), vec![vec![7; 100_000]]];
        for (position, batch) in (1..).zip(&batches) {
            engine.append(0, position, &slices(batch)).unwrap();
        }
        engine.append(u16::MAX, 1, &[b"other shard"]).unwrap();
        for _ in 0..2 {
            let (bounds, read) = contents(&mut *engine, 0).unwrap();
            assert_eq!(bounds, Bounds { first: 1, next: 4 });
            assert!(read.iter().map(|batch| &batch.records).eq(&batches));
            assert_eq!(contents(&mut *engine, u16::MAX).unwrap().0.next, 2);
            drop(engine);
            engine = storage.open();
        }
    }
}

#[test]
fn only_the_next_free_position_is_accepted() {
    for storage in Storage::all() {
        let mut engine = storage.open();
        fill(&mut *engine, 3, 4);
        let before = contents(&mut *engine, 3).unwrap();
        for position in [0, 1, 3, 5, 1 << 48, u64::MAX] {
            let error = engine.append(3, position, &[b"x"]).unwrap_err();
            let JournalError::Conflict { position: offered, next, .. } = error else {
                panic!("{error}")
            };
            assert_eq!((offered, next), (position, 4));
        }
        assert_eq!(contents(&mut *engine, 3).unwrap(), before, "a conflict writes nothing");
        fill(&mut *engine, 3, 5);
    }
}

#[test]
fn a_refused_batch_writes_nothing_and_the_engine_goes_on() {
    for storage in Storage::all() {
        let mut engine = storage.open();
        let too_large = vec![0; batch::BATCH_BYTES_MAX];
        assert_eq!(code(engine.append(0, 1, &[&too_large])), "journal_too_large");
        fill(&mut *engine, 0, 2);
    }
}

#[test]
fn reading_outside_the_bounds_is_a_gap() {
    for storage in Storage::all() {
        let mut engine = storage.open();
        fill(&mut *engine, 0, 6);
        engine.truncate(0, 3).unwrap();
        for (from, expected) in
            [(0, "journal_gap"), (2, "journal_gap"), (7, "journal_gap"), (u64::MAX, "journal_gap")]
        {
            assert_eq!(code(read(&mut *engine, 0, from)), expected, "{from}");
        }
        for from in 3..=6 {
            let positions = read(&mut *engine, 0, from).unwrap();
            assert!(positions.iter().map(|batch| batch.position).eq(from..6));
        }
    }
}

#[test]
fn a_reader_that_fails_ends_the_read_and_nothing_else() {
    for storage in Storage::all() {
        let mut engine = storage.open();
        fill(&mut *engine, 0, 4);
        let mut seen = 0;
        let error = JournalError::Io { path: PathBuf::new(), message: "reader".to_owned() };
        let outcome = engine.read(0, 1, &mut |_| {
            seen += 1;
            Err(error.clone())
        });
        assert_eq!((outcome, seen), (Err(error), 1));
        fill(&mut *engine, 0, 5);
    }
}

#[test]
fn truncation_is_remembered_and_never_goes_back() {
    for storage in Storage::all() {
        let mut engine = storage.open();
        fill(&mut *engine, 0, 6);
        // (before, first afterwards, code)
        for (before, first, expected) in [
            (0, 1, "ok"),
            (1, 1, "ok"),
            (3, 3, "ok"),
            (2, 3, "ok"),
            (7, 3, "journal_gap"),
            (6, 6, "ok"),
        ] {
            assert_eq!(code(engine.truncate(0, before)), expected, "{before}");
            drop(engine);
            engine = storage.open();
            let (bounds, batches) = contents(&mut *engine, 0).unwrap();
            assert_eq!(bounds, Bounds { first, next: 6 }, "{before}");
            assert!(batches.iter().map(|batch| batch.position).eq(first..6));
        }
        fill(&mut *engine, 0, 8);
        drop(engine);
        assert_eq!(contents(&mut *storage.open(), 0).unwrap().1.len(), 2);
    }
}

#[test]
fn a_batch_that_is_appended_while_others_are_forgotten_continues_them() {
    for storage in Storage::all() {
        let mut engine = storage.open();
        fill(&mut *engine, 0, 4);
        let whole = contents(&mut *engine, 0).unwrap();
        assert_eq!(code(engine.append_and_truncate(0, 3, &[], Some(2))), "journal_conflict");
        assert_eq!(code(engine.append_and_truncate(0, 4, &[], Some(5))), "journal_gap");
        assert_eq!(contents(&mut *engine, 0).unwrap(), whole, "nothing written or forgotten");
        // (position, before, first afterwards): some, none, all that was there.
        for (position, before, first) in [(4, 2, 2), (5, 1, 2), (6, 6, 6)] {
            engine.append_and_truncate(0, position, &[b"x"], Some(before)).unwrap();
            drop(engine);
            engine = storage.open();
            let (bounds, batches) = contents(&mut *engine, 0).unwrap();
            assert_eq!(bounds, Bounds { first, next: position + 1 });
            assert!(batches.iter().map(|batch| batch.position).eq(first..=position));
        }
    }
}

#[test]
fn an_error_names_its_place_and_the_way_out() {
    for storage in Storage::all() {
        let message = storage.open().append(9, 4, &[]).unwrap_err().to_string();
        for part in ["shard 9", "position 4", "1 is the next free", "do not retry"] {
            assert!(message.contains(part), "{part}: {message}");
        }
    }
}

#[test]
fn every_single_bit_flip_of_a_stored_batch_is_refused() {
    let engine = MemoryEngine::new();
    fill(&mut engine.clone(), 0, 4);
    for bit in 0..(24 + 4 + 2 + 4) * 8 {
        engine.damage(0, 2, bit);
        assert_eq!(code(contents(&mut engine.clone(), 0)), "journal_corrupt", "{bit}");
        engine.damage(0, 2, bit);
    }
    assert_eq!(code(contents(&mut engine.clone(), 0)), "ok");
}

#[test]
fn memory_faults_leave_what_they_say() {
    // (fault, next as reopened, next after a power loss without and with hardening)
    for (fault, reopened, lost, hardened) in [
        (AppendFault::Lost, 2, 2, 2),
        (AppendFault::Durable, 3, 3, 3),
        (AppendFault::Unsynced, 3, 2, 3),
    ] {
        for harden in [false, true] {
            let storage = MemoryEngine::new();
            let mut engine = storage.clone();
            storage.fail_append(2, fault);
            fill(&mut engine, 0, 2);
            assert_eq!(code(engine.append(0, 2, &[])), "journal_io", "{fault:?}");
            assert_eq!(code(engine.append(0, 2, &[])), "journal_poisoned");
            assert_eq!(code(read(&mut engine, 0, 1)), "journal_poisoned");
            assert_eq!(code(engine.bounds(0)), "journal_poisoned");
            assert_eq!(code(engine.truncate(0, 2)), "journal_poisoned");
            assert_eq!(code(engine.harden(0)), "journal_poisoned");

            let mut engine = storage.clone();
            assert_eq!(engine.bounds(0).unwrap().next, reopened, "{fault:?}");
            if harden {
                engine.harden(0).unwrap();
            }
            storage.lose_unsynced();
            let expected = if harden { hardened } else { lost };
            assert_eq!(engine.bounds(0).unwrap().next, expected, "{fault:?} {harden}");
        }
    }
}

#[test]
fn a_fenced_owner_meets_a_conflict() {
    let mut engine = MemoryEngine::new();
    fill(&mut engine, 5, 3);
    engine.fence(5);
    assert_eq!(code(engine.append(5, 3, &[])), "journal_conflict");
    assert_eq!(engine.bounds(5).unwrap().next, 4);
}
