//! Decides, for one participant, whether a call may go or is held back: a state machine that is
//! told the time and touches nothing. Which participant a call is for, and what is logged and
//! counted, is `breakers`' part.
//!
//! - **Closed**: every call goes. So many failures in a row open it.
//! - **Open**: probes go. For as long as five times `probe_ms` it may be a restart: the first
//!   probe goes after 1/64 of `probe_ms`, then each after twice as long, up to 1/8 of it, so that a
//!   participant is hardly seen later than it is back. A probe does not wait for the one before,
//!   because one slow call would hold back all; and one that is answered closes the breaker at
//!   once, because little has queued up. Later there is one probe at a time, one every `probe_ms`,
//!   and an answer makes the breaker drain.
//! - **Draining**: calls go at a bounded rate, from 1/64 of `drain_per_second` and twice that with
//!   each second. Whoever comes back has empty caches and perhaps still the cause of its fall; each
//!   second that it stands is a reason to trust it with twice as much, so the rate is never more
//!   than twice what it has shown it can bear, and is whole after six seconds. A second at the
//!   whole rate in which nothing had to be held back closes the breaker. So does a minute of it:
//!   calls that are held back come again, and a rate below what the participant is normally asked
//!   would otherwise hold it down for good.
//!
//! While draining, a quarter of the failures that open the breaker open it again: with one for
//! all, a participant that fails one call in twenty, and always did, could never come back.

/// The first probe's delay and the first draining rate are the whole, halved so many times.
const DOUBLINGS: u32 = 6;
/// An absence of up to so many times `probe_ms` is a restart.
const RESTART_PROBES: u64 = 5;
/// How long the draining rate stays the same, in milliseconds.
const STEP_MS: u64 = 1_000;
/// How many steps at the whole rate are enough, however much is still held back.
const STEPS_MAX: u32 = 60;
/// What is left unused of the rate may be used together within this time, in milliseconds.
const BURST_MS: u64 = 100;

/// When a breaker opens, and how it is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerConfig {
    /// After so many calls in a row without an answer it opens; 0: never.
    pub failures: u64,
    /// The longest time between two probes, in milliseconds.
    pub probe_ms: u64,
    /// The most calls a second while it drains.
    pub drain_per_second: u64,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self { failures: 20, probe_ms: 1_000, drain_per_second: 1_000 }
    }
}

/// What became of a breaker, for those who log and count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing to tell.
    Nothing,
    /// It was closed and is open.
    Opened,
    /// It was open or draining and is closed.
    Closed,
}

/// What comes next where calls are held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// A call that comes after so many milliseconds probes.
    Probe(u64),
    /// What the probe under way comes to.
    ProbeAnswers,
    /// So many calls a second, and more.
    Drains(u64),
}

/// The state in which a call was let go. What comes of it later counts only there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Generation(u64);

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Open {
        probing: bool,
        probe_at_ms: u64,
        delay_ms: u64,
        /// Whether it must drain, however soon it answers.
        drains: bool,
    },
    Draining(Draining),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Draining {
    rate_per_second: u64,
    /// What may go now, in thousandths of a call.
    allowance: u64,
    allowed_until_ms: u64,
    step_began_ms: u64,
    /// What happened in this step.
    asked: bool,
    answered: bool,
    held: bool,
    /// How many steps were at the whole rate.
    steps: u32,
}

/// One participant's breaker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Breaker {
    state: State,
    generation: u64,
    failures: u64,
    since_ms: u64,
    error: String,
    called_ms: u64,
}

impl Breaker {
    /// A closed one. Its generations begin at `generation`.
    pub(crate) const fn new(generation: u64, now_ms: u64) -> Self {
        Self {
            state: State::Closed,
            generation,
            failures: 0,
            since_ms: now_ms,
            error: String::new(),
            called_ms: now_ms,
        }
    }

    /// Whether a call may go now; it counts as gone.
    pub(crate) fn admit(
        &mut self,
        config: &BreakerConfig,
        now_ms: u64,
    ) -> (Option<Generation>, Change) {
        let change = self.pass_time(config, now_ms);
        self.called_ms = now_ms;
        let goes = match &mut self.state {
            State::Closed => true,
            State::Open { probing, probe_at_ms, delay_ms, drains } => {
                let alone = *drains || is_long(config, self.since_ms, now_ms);
                let due = now_ms >= *probe_at_ms && !(*probing && alone);
                if due {
                    *probing = true;
                    let most = if alone { config.probe_ms } else { config.probe_ms / 8 };
                    *delay_ms = delay_ms.saturating_mul(2).min(most).max(1);
                    *probe_at_ms = now_ms.saturating_add(*delay_ms);
                }
                due
            }
            State::Draining(draining) => draining.admit(),
        };
        (goes.then_some(Generation(self.generation)), change)
    }

    /// The participant has answered a call: it is there, whatever it said.
    pub(crate) fn answered(&mut self, config: &BreakerConfig, now_ms: u64) -> Change {
        self.failures = 0;
        match &mut self.state {
            State::Closed => Change::Nothing,
            State::Open { drains, .. } => {
                if *drains || is_long(config, self.since_ms, now_ms) {
                    self.turn(State::Draining(Draining::new(config, now_ms)));
                    return Change::Nothing;
                }
                self.turn(State::Closed);
                Change::Closed
            }
            State::Draining(draining) => {
                draining.answered = true;
                self.pass_time(config, now_ms)
            }
        }
    }

    /// A call has come to nothing.
    pub(crate) fn failed(
        &mut self,
        config: &BreakerConfig,
        now_ms: u64,
        of: Option<Generation>,
        error: &str,
    ) -> Change {
        // A call that left before the last change tells nothing about the time since.
        let current = of == Some(Generation(self.generation));
        if !current && self.state != State::Closed {
            return Change::Nothing;
        }
        if self.failures == 0 && matches!(self.state, State::Closed) {
            self.since_ms = now_ms;
        }
        self.failures = self.failures.saturating_add(1);
        error.clone_into(&mut self.error);
        match &mut self.state {
            State::Closed if config.failures > 0 && self.failures >= config.failures => {
                let delay_ms = (config.probe_ms >> DOUBLINGS).max(1);
                self.open(now_ms, delay_ms, false);
                Change::Opened
            }
            State::Closed => Change::Nothing,
            State::Open { probing, .. } => {
                *probing = false;
                Change::Nothing
            }
            State::Draining(_) => {
                if self.failures >= (config.failures / 4).max(1) {
                    self.open(now_ms, config.probe_ms, true);
                }
                Change::Nothing
            }
        }
    }

    /// A call that was let go has not left: another may go instead.
    pub(crate) fn withdrawn(&mut self, of: Generation) {
        if let State::Open { probing, probe_at_ms, .. } = &mut self.state
            && of == Generation(self.generation)
        {
            (*probing, *probe_at_ms) = (false, 0);
        }
    }

    /// Lets time pass; a breaker that drains closes by it.
    pub(crate) fn pass_time(&mut self, config: &BreakerConfig, now_ms: u64) -> Change {
        let State::Draining(draining) = &mut self.state else { return Change::Nothing };
        if !draining.pass_time(config, now_ms) {
            return Change::Nothing;
        }
        self.turn(State::Closed);
        Change::Closed
    }

    fn open(&mut self, now_ms: u64, delay_ms: u64, drains: bool) {
        let probe_at_ms = now_ms.saturating_add(delay_ms);
        self.turn(State::Open { probing: false, probe_at_ms, delay_ms, drains });
    }

    fn turn(&mut self, state: State) {
        self.state = state;
        self.generation = self.generation.wrapping_add(1);
    }

    /// What comes next; only of interest while it holds calls back.
    pub(crate) const fn next(&self, now_ms: u64) -> Next {
        match &self.state {
            State::Closed => Next::Probe(0),
            State::Open { probing: true, .. } => Next::ProbeAnswers,
            State::Open { probe_at_ms, .. } => Next::Probe(probe_at_ms.saturating_sub(now_ms)),
            State::Draining(draining) => Next::Drains(draining.rate_per_second),
        }
    }

    /// The generation of a call that goes now.
    pub(crate) const fn generation(&self) -> Generation {
        Generation(self.generation)
    }

    /// Whether it holds nothing back and has nothing to remember.
    pub(crate) const fn is_well(&self) -> bool {
        matches!(self.state, State::Closed) && self.failures == 0
    }

    /// Whether it is open or draining.
    pub(crate) const fn holds_back(&self) -> bool {
        !matches!(self.state, State::Closed)
    }

    /// Whether it is draining.
    pub(crate) const fn drains(&self) -> bool {
        matches!(self.state, State::Draining(_))
    }

    /// Since when the participant has failed, in the clock's milliseconds.
    pub(crate) const fn since_ms(&self) -> u64 {
        self.since_ms
    }

    /// What it failed with last.
    pub(crate) fn error(&self) -> &str {
        &self.error
    }

    /// When somebody last wanted to call it.
    pub(crate) const fn called_ms(&self) -> u64 {
        self.called_ms
    }
}

/// Whether an absence was too long for a restart.
const fn is_long(config: &BreakerConfig, since_ms: u64, now_ms: u64) -> bool {
    now_ms.saturating_sub(since_ms) >= config.probe_ms.saturating_mul(RESTART_PROBES)
}

impl Draining {
    fn new(config: &BreakerConfig, now_ms: u64) -> Self {
        Self {
            rate_per_second: (config.drain_per_second >> DOUBLINGS).max(1),
            allowance: 1_000,
            allowed_until_ms: now_ms,
            step_began_ms: now_ms,
            asked: false,
            answered: false,
            held: false,
            steps: 0,
        }
    }

    fn admit(&mut self) -> bool {
        self.asked = true;
        if self.allowance >= 1_000 {
            self.allowance -= 1_000;
            return true;
        }
        self.held = true;
        false
    }

    /// Takes steps and allows calls for the time until now; whether it is over.
    fn pass_time(&mut self, config: &BreakerConfig, now_ms: u64) -> bool {
        while now_ms.saturating_sub(self.step_began_ms) >= STEP_MS {
            self.allow(self.step_began_ms + STEP_MS);
            self.step_began_ms += STEP_MS;
            let whole = self.rate_per_second >= config.drain_per_second;
            self.steps += u32::from(whole);
            if whole && (!self.held || self.steps >= STEPS_MAX) {
                return true;
            }
            // One that was asked and has said nothing is not trusted with more.
            if self.answered || !self.asked {
                let doubled = self.rate_per_second.saturating_mul(2);
                self.rate_per_second = doubled.min(config.drain_per_second);
            }
            (self.asked, self.answered, self.held) = (false, false, false);
        }
        self.allow(now_ms);
        false
    }

    fn allow(&mut self, until_ms: u64) {
        let ms = until_ms.saturating_sub(self.allowed_until_ms);
        let most = self.rate_per_second.saturating_mul(BURST_MS).max(1_000);
        let more = ms.saturating_mul(self.rate_per_second);
        self.allowance = self.allowance.saturating_add(more).min(most);
        self.allowed_until_ms = self.allowed_until_ms.max(until_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: BreakerConfig =
        BreakerConfig { failures: 4, probe_ms: 640, drain_per_second: 640 };

    /// A breaker and the calls that it has let go.
    struct Play {
        breaker: Breaker,
        config: BreakerConfig,
        now_ms: u64,
        gone: Vec<Generation>,
    }

    impl Play {
        fn new(config: BreakerConfig) -> Self {
            Self { breaker: Breaker::new(7, 0), config, now_ms: 0, gone: Vec::new() }
        }

        /// One step of a script: `go` asks whether a call may go (`+` it may, `-` it is held
        /// back), `go*9` asks nine times and tells how many went, `ok` and `no` are what came of
        /// the oldest call that went, `last` is a `no` to the newest, `back` withdraws the newest,
        /// `@5` waits until then.
        fn step(&mut self, step: &str) -> String {
            let (config, now_ms) = (self.config, self.now_ms);
            if let Some(times) = step.strip_prefix("go*") {
                let times: u32 = times.parse().unwrap();
                let went = (0..times).filter(|_| self.step("go").starts_with('+')).count();
                return went.to_string();
            }
            let word = |change: Change| match change {
                Change::Nothing => String::new(),
                Change::Opened => "opened".to_owned(),
                Change::Closed => "closed".to_owned(),
            };
            match step {
                "go" => {
                    let (gone, change) = self.breaker.admit(&config, now_ms);
                    self.gone.extend(gone);
                    let sign = if gone.is_some() { "+" } else { "-" };
                    format!("{sign}{}", word(change))
                }
                "ok" => {
                    self.gone.remove(0);
                    word(self.breaker.answered(&config, now_ms))
                }
                "no" | "last" => {
                    let at = if step == "no" { 0 } else { self.gone.len() - 1 };
                    let of = self.gone.remove(at);
                    word(self.breaker.failed(&config, now_ms, Some(of), "refused"))
                }
                "back" => {
                    let of = self.gone.pop().unwrap();
                    self.breaker.withdrawn(of);
                    String::new()
                }
                wait => {
                    self.now_ms = wait.strip_prefix('@').unwrap().parse().unwrap();
                    word(self.breaker.pass_time(&config, self.now_ms))
                }
            }
        }
    }

    fn check_with(config: BreakerConfig, script: &str, expected: &str) {
        let mut play = Play::new(config);
        let told: Vec<String> = script.split_whitespace().map(|step| play.step(step)).collect();
        let told: Vec<&str> =
            told.iter().map(String::as_str).filter(|word| !word.is_empty()).collect();
        assert_eq!(told.join(" "), expected, "{script}: {:?}", play.breaker);
    }

    fn check(script: &str, expected: &str) {
        check_with(CONFIG, script, expected);
    }

    #[test]
    fn it_opens_only_after_so_many_failures_in_a_row() {
        check("go*3 no no no go", "3 +");
        check("go*3 no no no go ok go*3 no no no go", "3 + 3 +");
        check("go*4 no no no no go", "4 opened -");
        // Calls that were under way when it opened say nothing new.
        check("go*9 no no no no no no no no no @10 go", "9 opened +");
        let never = BreakerConfig { failures: 0, ..CONFIG };
        check_with(never, "go*40 no no no no no no no no no no go", "40 +");
    }

    #[test]
    fn one_probe_at_a_time_at_growing_intervals() {
        let open = "go*4 no no no no";
        check(&format!("{open} go @9 go @10 go go"), "4 opened - - + -");
        // 10, 20, 40, 80 ms and no longer, for five times 640; then 160, 320, 640 and no longer.
        check(
            &format!(
                "{open} @10 go no @29 go @30 go no @69 go @70 go no @149 go @150 go no @229 go \
                 @230 go no @3200 go no @3359 go @3360 go no @3679 go @3680 go no @4319 go @4320 \
                 go no @4959 go @4960 go no"
            ),
            "4 opened + - + - + - + - + + - + - + - + - +",
        );
        check(&format!("{open} @10 go back go go"), "4 opened + + -");
        // A probe that hangs does not keep the next one back at first, and later it does.
        check(
            &format!("{open} @10 go @29 go @30 go @3199 go go @60000 go*9"),
            "4 opened + - + + - 0",
        );
        check(&format!("{open} @60000 go go @70000 go no go go"), "4 opened + - - + -");
    }

    #[test]
    fn a_short_absence_is_over_with_the_first_answer() {
        check("go*4 no no no no @10 go ok go*9", "4 opened + closed 9");
        // So it is with a late answer to a call from before.
        check("go*5 no no no no ok go*9", "5 opened closed 9");
    }

    const BACK_MS: u64 = 3_300;
    const GONE: &str = "go*4 no no no no @3300 go";

    #[test]
    fn after_a_long_absence_it_drains_at_a_doubling_rate() {
        // A probe, then 10 calls a second with one at a time, and ever more with each second.
        let mut play = Play::new(CONFIG);
        for step in GONE.split_whitespace().chain(["ok"]) {
            play.step(step);
        }
        let mut went = Vec::new();
        let mut closed_at_ms = None;
        for ms in 1..=20_000 {
            if play.step(&format!("@{}", BACK_MS + ms)) == "closed" {
                closed_at_ms = Some(ms);
                break;
            }
            // Ten times what is allowed at most, in every millisecond, until ten seconds have gone.
            let now = if ms < 10_000 { play.step("go*7").parse().unwrap() } else { 0 };
            let second = usize::try_from((ms - 1) / 1_000).unwrap();
            went.resize(second + 1, 0);
            went[second] += now;
            (0..now).for_each(|_| drop(play.step("ok")));
        }
        let rates = [10, 20, 40, 80, 160, 320, 640, 640, 640, 640];
        for (second, rate) in rates.into_iter().enumerate() {
            let found: u32 = went[second];
            assert!(found <= rate + rate / 10 + 1, "second {second}: {found} of {rate}");
            assert!(found >= rate - 1, "second {second}: {found} of {rate}");
        }
        // The tenth second held calls back until its end; the eleventh is the first without.
        assert_eq!(closed_at_ms, Some(11_000));
    }

    #[test]
    fn draining_ends_when_nothing_is_held_back_and_after_a_minute_at_the_latest() {
        // Nobody asks: six doublings and one second at the whole rate.
        check(&format!("{GONE} ok @10299"), "4 opened +");
        check(&format!("{GONE} ok @10300"), "4 opened + closed");
        check(&format!("{GONE} ok @900000 go*99"), "4 opened + closed 99");
        let mut play = Play::new(CONFIG);
        GONE.split_whitespace().for_each(|step| drop(play.step(step)));
        play.step("ok");
        let mut closed = None;
        for ms in (BACK_MS..200_000).step_by(50) {
            if play.step(&format!("@{ms}")) == "closed" {
                closed = Some(ms);
                break;
            }
            let went: u32 = play.step("go*1000").parse().unwrap();
            (0..went).for_each(|_| drop(play.step("ok")));
        }
        assert_eq!(closed, Some(BACK_MS + 66_000));
    }

    #[test]
    fn who_is_asked_and_says_nothing_is_not_asked_faster() {
        let hangs = "@3310 go*1000 @4300 go*1000 @4400 go*1000 @5300 go*1000 @5400 go*1000";
        check(&format!("{GONE} ok {hangs}"), "4 opened + 1 1 1 1 1");
        let answers = "@3310 go*1000 ok @4300 go*1000 ok @4400 go*1000";
        check(&format!("{GONE} ok {answers}"), "4 opened + 1 1 2");
    }

    #[test]
    fn failures_while_draining_open_it_again() {
        // A quarter of 4 is one; then the probes are rare at once, and it drains from the start.
        check(
            &format!("{GONE} ok @3400 go last @4039 go @4040 go ok @4100 go*9"),
            "4 opened + + - + 1",
        );
        let patient = BreakerConfig { failures: 8, ..CONFIG };
        let open = "go*8 no no no no no no no no @3300 go ok @3400 go last";
        check_with(patient, &format!("{open} @3500 go last @3600 go"), "8 opened + + + -");
        check_with(
            patient,
            &format!("{open} @3500 go ok @3600 go last @3700 go"),
            "8 opened + + + + +",
        );
        // A call from before it drained is no reason.
        check("go*6 no no no no @3300 go last ok no @3310 go", "6 opened + +");
    }

    #[test]
    fn what_it_tells() {
        let mut play = Play::new(CONFIG);
        assert!(!play.breaker.holds_back() && play.breaker.is_well());
        let next = |play: &Play| play.breaker.next(play.now_ms);
        "@50 go*4 no @60 no no no".split(' ').for_each(|step| drop(play.step(step)));
        assert!(play.breaker.holds_back() && !play.breaker.drains() && !play.breaker.is_well());
        assert_eq!((play.breaker.since_ms(), play.breaker.error()), (50, "refused"));
        assert_eq!(next(&play), Next::Probe(10));
        "@3300 go".split(' ').for_each(|step| drop(play.step(step)));
        assert_eq!(next(&play), Next::ProbeAnswers);
        play.step("ok");
        assert_eq!(next(&play), Next::Drains(10));
        assert!(play.breaker.holds_back() && play.breaker.drains());
        assert_eq!((play.breaker.since_ms(), play.breaker.called_ms()), (50, 3_300));
    }
}
