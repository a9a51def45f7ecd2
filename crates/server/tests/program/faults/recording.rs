//! What a program did to its files, as strace has seen it, and what of it a power cut at any moment
//! may leave: everything that was synced, and of everything else a random part, in sectors of 512
//! bytes. This file decides which states are legal; what must be true of each is in `images`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const SECTOR: usize = 512;
/// The system calls that change a file, or make a change durable.
pub const CALLS: &str =
    "trace=openat,pwrite64,pwritev,write,writev,ftruncate,fsync,fdatasync,unlink,unlinkat,rename";

/// Something that a program did to a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    Made(PathBuf),
    Wrote(PathBuf, usize, Vec<u8>),
    Cut(PathBuf, usize),
    /// A file, or a folder with the names in it.
    Synced(PathBuf),
    Removed(PathBuf),
}

/// An act, and when the program asked for it, in microseconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    pub from_us: u64,
    pub act: Act,
}

/// Reads the lines of `strace -f -ttt -y -xx`. A write counts from its call on, a sync from its
/// return.
pub fn read(trace: &str) -> Vec<Done> {
    let mut begun: BTreeMap<&str, (u64, String)> = BTreeMap::new();
    let mut acts = Vec::new();
    for line in trace.lines() {
        // Numbers of threads are filled up with spaces.
        let Some((thread, rest)) = line.trim_start().split_once(' ') else { continue };
        let Some((at, call)) = rest.trim_start().split_once(' ') else { continue };
        let at_us = microseconds(at);
        if let Some(start) = call.strip_suffix("<unfinished ...>") {
            acts.extend(act(start).filter(is_change).map(|act| Done { from_us: at_us, act }));
            begun.insert(thread, (at_us, start.to_owned()));
        } else if call.starts_with("<... ") {
            let Some((from_us, start)) = begun.remove(thread) else { continue };
            let rest = call.split_once("resumed>").map_or("", |(_, rest)| rest);
            let whole = act(&format!("{start}{rest}"));
            acts.extend(whole.filter(|act| !is_change(act)).map(|act| Done { from_us, act }));
            assert!(!rest.contains("= -1"), "a call failed: {line}");
        } else {
            acts.extend(act(call).map(|act| Done { from_us: at_us, act }));
        }
    }
    acts
}

fn is_change(act: &Act) -> bool {
    matches!(act, Act::Wrote(..) | Act::Cut(..))
}

fn microseconds(text: &str) -> u64 {
    let (seconds, rest) = text.split_once('.').unwrap_or((text, "0"));
    seconds.parse::<u64>().unwrap_or(0) * 1_000_000 + rest.parse::<u64>().unwrap_or(0)
}

/// What a call did; nothing, if it failed or changes nothing.
fn act(call: &str) -> Option<Act> {
    let (name, rest) = call.split_once('(')?;
    if rest.contains(" = -1 ") {
        return None;
    }
    let file = || rest.split_once('<')?.1.split_once('>').map(|(path, _)| path_of(path));
    let last = || rest.split(')').next()?.rsplit(", ").next()?.trim().parse::<usize>().ok();
    match name {
        "pwrite64" => {
            let quoted = rest.split('"').nth(1)?;
            assert!(!rest.contains("\"..."), "a write is cut short in the trace");
            Some(Act::Wrote(file()?, last()?, bytes_of(quoted)))
        }
        "ftruncate" => Some(Act::Cut(file()?, last()?)),
        "fsync" | "fdatasync" => Some(Act::Synced(file()?)),
        "openat" if rest.contains("O_CREAT") => {
            let opened = rest.rsplit_once("= ")?.1;
            Some(Act::Made(path_of(opened.split_once('<')?.1.trim_end_matches('>'))))
        }
        "unlink" => Some(Act::Removed(path_of(rest.split('"').nth(1)?))),
        "openat" => None,
        other => panic!("nobody has said what {other} does to a disk: {call}"),
    }
}

fn path_of(text: &str) -> PathBuf {
    let bytes = if text.starts_with("\\x") { bytes_of(text) } else { text.as_bytes().to_vec() };
    PathBuf::from(String::from_utf8(bytes).unwrap())
}

fn bytes_of(text: &str) -> Vec<u8> {
    let digits = text.split("\\x").skip(1);
    digits.map(|two| u8::from_str_radix(two, 16).unwrap()).collect()
}

/// A file as its program sees it, as the disk holds it for sure, and what lies between.
#[derive(Clone, Debug, Default)]
struct Disk {
    cached: Vec<u8>,
    durable: Vec<u8>,
    /// Every content that a sector had since the last sync, the oldest first.
    dirty: BTreeMap<usize, Vec<Vec<u8>>>,
    /// The sizes that the file had since then.
    sizes: Vec<usize>,
    /// Whether its name is in the folder for sure.
    named: bool,
}

impl Disk {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        if self.cached.len() < at + bytes.len() {
            self.cached.resize(at + bytes.len(), 0);
            self.sizes.push(at + bytes.len());
        }
        self.cached[at..at + bytes.len()].copy_from_slice(bytes);
        for sector in at / SECTOR..=(at + bytes.len().max(1) - 1) / SECTOR {
            let end = ((sector + 1) * SECTOR).min(self.cached.len());
            let content = self.cached[sector * SECTOR..end].to_vec();
            self.dirty.entry(sector).or_default().push(content);
        }
    }

    fn cut(&mut self, size: usize) {
        self.cached.resize(size, 0);
        self.sizes.push(size);
    }

    fn sync(&mut self) {
        self.durable.clone_from(&self.cached);
        self.dirty.clear();
        self.sizes.clear();
    }

    /// One of the states in which a power cut may leave it.
    fn left(&self, random: &mut Random) -> Vec<u8> {
        let mut left = self.durable.clone();
        // How much survives differs from cut to cut: nothing, a little, half, nearly all.
        let survives = [0, 10, 50, 90][random.below(4)];
        let mut reaches = self.durable.len();
        for (sector, contents) in &self.dirty {
            if random.below(100) >= survives {
                continue;
            }
            let content = &contents[random.below(contents.len())];
            let at = sector * SECTOR;
            if left.len() < at + content.len() {
                left.resize(at + content.len(), 0);
            }
            left[at..at + content.len()].copy_from_slice(content);
            reaches = reaches.max(at + content.len());
        }
        if random.below(2) == 0
            && let Some(size) = self.sizes.get(random.below(self.sizes.len().max(1)))
        {
            left.resize(*size, 0);
        }
        left
    }
}

/// Bits for which sectors survive.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(1);
        let bits = unanimity::core::splitmix64(self.0);
        usize::try_from(bits % bound.max(1) as u64).unwrap()
    }
}

/// The files of a program, at one moment of its recording.
#[derive(Clone, Debug, Default)]
pub struct Files(BTreeMap<PathBuf, Disk>);

impl Files {
    /// What was there before the recording: taken as durable.
    pub fn before(paths: &[PathBuf]) -> Self {
        let mut files = BTreeMap::new();
        for path in paths {
            if let Ok(bytes) = std::fs::read(path) {
                let (cached, durable) = (bytes.clone(), bytes);
                let (dirty, sizes) = (BTreeMap::new(), Vec::new());
                files.insert(path.clone(), Disk { cached, durable, dirty, sizes, named: true });
            }
        }
        Self(files)
    }

    pub fn take(&mut self, act: &Act) {
        match act {
            Act::Made(path) => drop(self.0.entry(path.clone()).or_default()),
            Act::Wrote(path, at, bytes) => {
                self.0.entry(path.clone()).or_default().write(*at, bytes)
            }
            Act::Cut(path, size) => self.0.entry(path.clone()).or_default().cut(*size),
            Act::Removed(path) => drop(self.0.remove(path)),
            Act::Synced(path) if self.0.contains_key(path) => {
                self.0.entry(path.clone()).or_default().sync();
            }
            Act::Synced(folder) => {
                let inside = self.0.iter_mut().filter(|(path, _)| path.parent() == Some(folder));
                inside.for_each(|(_, disk)| disk.named = true);
            }
        }
    }

    /// How many sectors are not durable for sure.
    pub fn unsynced(&self) -> usize {
        self.0.values().map(|disk| disk.dirty.len()).sum()
    }

    /// Writes one of the states that a power cut now may leave into another folder.
    pub fn left_in(&self, folder: &Path, random: &mut Random) {
        for (path, disk) in &self.0 {
            if disk.named || random.below(2) == 0 {
                let name = path.file_name().unwrap();
                std::fs::write(folder.join(name), disk.left(random)).unwrap();
            }
        }
    }
}

#[test]
fn what_is_synced_stays_and_what_is_not_may_be_there_in_parts() {
    let trace = r#"
7     1.000001 pwrite64(3<\x2f\x61>, "\x01\x02", 2, 511) = 2
8 1.000002 pwrite64(3<\x2f\x61>, "\x03", 1, 0 <unfinished ...>
7 1.000003 fdatasync(3<\x2f\x61> <unfinished ...>
8 1.000004 <... pwrite64 resumed>)       = 1
7 1.000005 <... fdatasync resumed>)      = 0
7 1.000006 pwrite64(3<\x2f\x61>, "\x09", 1, 512) = 1
7 1.000007 fsync(3<\x2f\x61>) = -1 EIO (Input/output error)
"#;
    let acts = read(trace);
    assert_eq!(acts.len(), 4, "{acts:?}");
    assert_eq!(acts[2], Done { from_us: 1_000_003, act: Act::Synced("/a".into()) });
    let mut files = Files::default();
    acts.iter().for_each(|done| files.take(&done.act));
    let disk = &files.0[Path::new("/a")];
    let mut last = std::collections::BTreeSet::new();
    for seed in 0..50 {
        let left = disk.left(&mut Random(seed * 1_000));
        assert_eq!((left[0], left[511], left.len()), (3, 1, 513));
        last.insert(left[512]);
    }
    assert_eq!(last.into_iter().collect::<Vec<_>>(), [2, 9]);
    assert_eq!(files.unsynced(), 1);
}
