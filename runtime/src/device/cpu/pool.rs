//! Threads that are made once and then share one job after the other: how they find work, wait and stop.
//!
//! A job is a list of stages, each a grid of units; a stage starts when all units before it are done. Every thread has a contiguous part of each
//! grid, cut into a few pieces, and claims them one by one; when it has none left, it claims those of others. So a stage is over when its units
//! are done, not when all threads have come by: a thread that the system has taken off its CPU, or that still sleeps, is not waited for unless
//! it has a piece in hand, and finds later that everything is done. On a machine that is not busy every thread does its own part, the same part
//! of the same weights each time.
//!
//! Between two stages this costs a few hundred nanoseconds while everybody spins. Whoever waits longer first yields and then sleeps, so that an
//! idle session costs nothing and a busy machine is not blocked by spinning. While it waits awake it reads ahead: the weights of the stages to
//! come are known, and memory has nothing better to do while one thread computes a norm, or the last of an attention.
//!
//! A panic ends the job: nothing more is claimed, and [`Pool::run`] reports it when no piece is in hand any more. The pool can be used again.

use std::any::Any;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::RuntimeError;

/// Polls before yielding: some microseconds, as long as a small stage.
const SPINS: u32 = 2_000;
/// How long a worker waits awake for the next job. Decoding leaves the workers idle for the time of sampling and printing between calls,
/// and waking them costs about 50 microseconds each.
const BETWEEN_JOBS: Duration = Duration::from_micros(300);
/// How long a thread waits awake for the others inside a job.
const INSIDE_JOBS: Duration = Duration::from_millis(5);
/// Pieces of a thread's part. More balance better, and each costs a claim; with 4 a thread that loses its CPU leaves three quarters to others.
const PIECES: u64 = 4;

/// A list of grids to be done one after the other.
pub(crate) trait Stages: Send + Sync {
    /// The number of stages.
    fn len(&self) -> usize;

    /// The units of a stage.
    fn units(&self, stage: usize) -> u64;

    /// How many neighbouring units are best done together: pieces are cut at multiples of it.
    fn grain(&self, _stage: usize) -> u64 {
        1
    }

    /// Does the units `begin..end` of a stage. Those of earlier stages are done, and what they wrote can be read.
    fn execute(&self, stage: usize, begin: u64, end: u64);

    /// Brings nearer what a stage that comes soon reads, where it is little: each thread calls this before the last piece of its part of the
    /// stage before.
    fn approach(&self, _stage: usize) {}

    /// The first stage after `stage` that waits for memory, if [`Stages::read_ahead`] can do something about it.
    fn streams_after(&self, _stage: usize) -> Option<usize> {
        None
    }

    /// Brings nearer what the units `begin..end` of a stage will read: bit `bit` of it, in well under a microsecond. A thread that waits for
    /// the others of an earlier stage calls this with one bit after the other, until there is no more.
    fn read_ahead(&self, _stage: usize, _begin: u64, _end: u64, _bit: u64) -> ControlFlow<()> {
        ControlFlow::Break(())
    }
}

/// The threads.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    threads: usize,
    /// The job of the current round; none between jobs.
    run: Mutex<Option<Arc<Run>>>,
    /// Advances when a job is there, and when the pool is dropped.
    start: AtomicU64,
    /// Workers between taking a job and leaving it.
    active: AtomicUsize,
    stop: AtomicBool,
    bell: Bell,
}

/// A job, and how far it is. A thread that comes late has its own hold on it, and finds nothing to claim.
struct Run {
    stages: Arc<dyn Stages>,
    threads: usize,
    /// For each owner and stage, in this order, how many pieces were claimed or tried to be.
    claimed: Vec<AtomicU32>,
    /// For each stage, the units that are done.
    done: Vec<AtomicU64>,
    is_poisoned: AtomicBool,
    /// What the first thread that panicked said.
    panic: Mutex<Option<String>>,
}

/// More threads than any machine has CPUs. Beyond some ten thousands a thread that has no room for its stack ends the whole process.
const MAX_THREADS: usize = 4096;

impl Pool {
    /// A pool of so many threads, at least 1, the calling one included.
    pub(crate) fn new(threads: usize) -> Result<Self, RuntimeError> {
        let threads = threads.max(1);
        if MAX_THREADS < threads {
            let source =
                std::io::Error::new(std::io::ErrorKind::InvalidInput, format!("at most {MAX_THREADS} can be used"));
            return Err(RuntimeError::Threads { threads, source });
        }
        let shared = Arc::new(Shared {
            threads,
            run: Mutex::new(None),
            start: AtomicU64::new(0),
            active: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            bell: Bell::default(),
        });
        // Dropping the pool stops those that were started if one cannot be.
        let mut pool = Self { shared, workers: Vec::with_capacity(threads - 1) };
        for thread in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new().name(format!("tritter-{thread}"));
            let worker = worker
                .spawn(move || shared.work(thread))
                .map_err(|source| RuntimeError::Threads { threads, source })?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// The number of threads.
    pub(crate) fn threads(&self) -> usize {
        self.shared.threads
    }

    /// Does all stages and returns when they are done.
    pub(crate) fn run(&mut self, stages: Arc<dyn Stages>) -> Result<(), RuntimeError> {
        let shared = &*self.shared;
        let run = Arc::new(Run::new(stages, shared.threads));
        if !self.workers.is_empty() {
            *lock(&shared.run) = Some(Arc::clone(&run));
            shared.start.fetch_add(1, Ordering::SeqCst);
            shared.bell.ring();
        }
        run.work(0, &shared.bell);
        if !self.workers.is_empty() {
            *lock(&shared.run) = None;
        }
        if run.is_poisoned.load(Ordering::SeqCst) {
            // Others may be in the middle of a piece. Whoever becomes active from now on sees the poison before it claims one.
            shared.bell.wait_until(INSIDE_JOBS, || shared.active.load(Ordering::SeqCst) == 0);
            let message = lock(&run.panic).take().unwrap_or_default();
            return Err(RuntimeError::Panicked { message });
        }
        Ok(())
    }

    /// Does one grid.
    pub(crate) fn run_grid(
        &mut self,
        units: u64,
        execute: impl Fn(u64, u64) + Send + Sync + 'static,
    ) -> Result<(), RuntimeError> {
        self.run(Arc::new(Grid { units, execute }))
    }
}

/// A job of one stage.
struct Grid<F> {
    units: u64,
    execute: F,
}

impl<F: Fn(u64, u64) + Send + Sync> Stages for Grid<F> {
    fn len(&self) -> usize {
        1
    }

    fn units(&self, _stage: usize) -> u64 {
        self.units
    }

    fn execute(&self, _stage: usize, begin: u64, end: u64) {
        (self.execute)(begin, end);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.start.fetch_add(1, Ordering::SeqCst);
        self.shared.bell.ring();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its jobs, so there is none to report.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn work(&self, thread: usize) {
        // The pool's first job may have been published before this thread looked, hence not the present value.
        let mut seen = 0;
        loop {
            self.bell.wait_until(BETWEEN_JOBS, || self.start.load(Ordering::SeqCst) != seen);
            seen = self.start.load(Ordering::SeqCst);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            self.active.fetch_add(1, Ordering::SeqCst);
            let run = lock(&self.run).clone();
            if let Some(run) = run {
                run.work(thread, &self.bell);
            }
            self.active.fetch_sub(1, Ordering::SeqCst);
            self.bell.ring();
        }
    }
}

impl Run {
    fn new(stages: Arc<dyn Stages>, threads: usize) -> Self {
        let len = stages.len();
        Self {
            stages,
            threads,
            claimed: (0..len * threads).map(|_| AtomicU32::new(0)).collect(),
            done: (0..len).map(|_| AtomicU64::new(0)).collect(),
            is_poisoned: AtomicBool::new(false),
            panic: Mutex::new(None),
        }
    }

    /// Does what one thread finds to do, and returns when everything is done, or after a panic.
    fn work(&self, thread: usize, bell: &Bell) {
        // The data of a job is not used after a panic.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.all_stages(thread, bell))) {
            lock(&self.panic).get_or_insert_with(|| panic_message(&*panic));
            self.is_poisoned.store(true, Ordering::SeqCst);
            bell.ring();
        }
    }

    fn all_stages(&self, thread: usize, bell: &Bell) {
        let mut ahead = Ahead::default();
        for stage in 0..self.stages.len() {
            let units = self.stages.units(stage);
            // Acquires what all units of the stage wrote, if they are done.
            let is_over = || self.done[stage].load(Ordering::SeqCst) == units;
            if !is_over() {
                for owner in (thread..self.threads).chain(0..thread) {
                    self.pieces_of(owner, thread, stage, units, bell);
                }
                let mut next = ahead.after(&*self.stages, stage, thread, self.threads);
                bell.wait_until(INSIDE_JOBS, || {
                    next.advance(&*self.stages);
                    is_over() || self.is_poisoned.load(Ordering::SeqCst)
                });
                ahead = next;
            }
            if self.is_poisoned.load(Ordering::SeqCst) {
                return;
            }
        }
    }

    /// Claims and does, as `thread`, pieces of an owner's part of a stage until there are none left.
    fn pieces_of(&self, owner: usize, thread: usize, stage: usize, units: u64, bell: &Bell) {
        let (first, last) = part(units, owner as u64, self.threads as u64);
        let pieces = PIECES.min(last - first);
        let grain = self.stages.grain(stage);
        let cut = |at: u64| match at {
            0 => first,
            at if at == last - first => last,
            at => (first + at).next_multiple_of(grain).min(last),
        };
        let claimed = &self.claimed[owner * self.done.len() + stage];
        // Reading first spares those who come late the writing.
        while u64::from(claimed.load(Ordering::Relaxed)) < pieces && !self.is_poisoned.load(Ordering::SeqCst) {
            let piece = u64::from(claimed.fetch_add(1, Ordering::Relaxed));
            if pieces <= piece {
                return;
            }
            if owner == thread && piece + 1 == pieces && stage + 1 < self.done.len() {
                self.stages.approach(stage + 1);
            }
            let (begin, end) = part(last - first, piece, pieces);
            let (begin, end) = (cut(begin), cut(end));
            if begin == end {
                continue;
            }
            self.stages.execute(stage, begin, end);
            // Whoever adds the last sees what all others did before they added theirs.
            if self.done[stage].fetch_add(end - begin, Ordering::SeqCst) + end - begin == units {
                bell.ring();
            }
        }
    }
}

/// How far a thread has read ahead while it waited.
#[derive(Clone, Copy, Default)]
struct Ahead {
    /// The stage that it reads for, if there is one.
    stage: Option<usize>,
    /// The thread's part of it.
    begin: u64,
    end: u64,
    /// The bit that comes next; none when there are no more.
    bit: Option<u64>,
}

impl Ahead {
    /// What to read while waiting for `stage`: where it stopped, if that is for the same stage.
    fn after(self, stages: &dyn Stages, stage: usize, thread: usize, threads: usize) -> Self {
        let target = stages.streams_after(stage);
        if target == self.stage {
            return self;
        }
        let (begin, end) = target.map_or((0, 0), |target| part(stages.units(target), thread as u64, threads as u64));
        Self { stage: target, begin, end, bit: Some(0) }
    }

    fn advance(&mut self, stages: &dyn Stages) {
        if let (Some(stage), Some(bit)) = (self.stage, self.bit) {
            self.bit = stages.read_ahead(stage, self.begin, self.end, bit).is_continue().then_some(bit + 1);
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

/// A lock whose data stays valid whatever happened to its last holder.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What threads wait on: awake first, then asleep. What they wait for must be written and read sequentially consistent.
#[derive(Default)]
struct Bell {
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    condition: Condvar,
}

impl Bell {
    /// Wakes all sleepers, who look again at what they wait for.
    fn ring(&self) {
        // Either this sees a sleeper, or the sleeper, who looks after it is counted, sees what was written before this.
        if self.sleepers.load(Ordering::SeqCst) != 0 {
            drop(lock(&self.lock));
            self.condition.notify_all();
        }
    }

    /// Waits for `condition`, awake for about `patience`.
    fn wait_until(&self, patience: Duration, mut condition: impl FnMut() -> bool) {
        for _ in 0..SPINS {
            if condition() {
                return;
            }
            std::hint::spin_loop();
        }
        let start = Instant::now();
        while start.elapsed() < patience {
            if condition() {
                return;
            }
            std::thread::yield_now();
        }
        let mut guard = lock(&self.lock);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while !condition() {
            guard = self.condition.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The part of a grid that is piece `index` of `count`: contiguous, in order, sizes differ by at most one.
fn part(units: u64, index: u64, count: u64) -> (u64, u64) {
    let bound = |index: u64| (u128::from(units) * u128::from(index) / u128::from(count)) as u64;
    (bound(index), bound(index + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stages that count how often each unit is done, and check that all before are done.
    struct Counting {
        units: Vec<u64>,
        counts: Vec<Vec<AtomicUsize>>,
        /// What else to do for a unit.
        extra: fn(usize, u64),
    }

    impl Counting {
        fn new(units: &[u64], extra: fn(usize, u64)) -> Arc<Self> {
            let counts = units.iter().map(|&units| (0..units).map(|_| AtomicUsize::new(0)).collect()).collect();
            Arc::new(Self { units: units.to_vec(), counts, extra })
        }

        fn assert_each_once(&self) {
            let counts = self.counts.iter().flatten();
            assert!(counts.into_iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }

    impl Stages for Counting {
        fn len(&self) -> usize {
            self.units.len()
        }

        fn units(&self, stage: usize) -> u64 {
            self.units[stage]
        }

        fn grain(&self, stage: usize) -> u64 {
            1 + stage as u64 % 5
        }

        fn streams_after(&self, stage: usize) -> Option<usize> {
            (stage + 1 < self.units.len()).then_some(stage + 1)
        }

        fn read_ahead(&self, stage: usize, begin: u64, end: u64, bit: u64) -> ControlFlow<()> {
            assert!(
                begin <= end && end <= self.units[stage] && bit <= 3,
                "bit {bit} of {begin}..{end} in stage {stage}"
            );
            if bit < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        }

        fn execute(&self, stage: usize, begin: u64, end: u64) {
            if stage != 0 {
                assert!(self.counts[stage - 1].iter().all(|count| count.load(Ordering::Relaxed) == 1), "stage {stage}");
            }
            for unit in begin..end {
                (self.extra)(stage, unit);
                self.counts[stage][unit as usize].fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    #[test]
    fn parts_cover_every_unit_once_in_order() {
        for units in [0, 1, 2, 7, 16, 1000, u64::from(u32::MAX)] {
            for count in [1, 2, 3, 7, 64] {
                let parts: Vec<_> = (0..count).map(|index| part(units, index, count)).collect();
                assert_eq!((parts[0].0, parts[count as usize - 1].1), (0, units));
                assert!(parts.windows(2).all(|pair| pair[0].1 == pair[1].0));
                let sizes: Vec<_> = parts.iter().map(|(begin, end)| end - begin).collect();
                assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
            }
        }
    }

    #[test]
    fn every_unit_is_done_exactly_once_and_after_the_stages_before() {
        for threads in [1, 2, 5, 16] {
            let mut pool = Pool::new(threads).unwrap();
            for round in 0..50 {
                let stages = Counting::new(&[1, 100, 3, 0, round, 1, 1, 17], |_, _| ());
                pool.run(Arc::clone(&stages) as Arc<dyn Stages>).unwrap();
                stages.assert_each_once();
            }
        }
    }

    #[test]
    fn threads_that_sleep_are_woken_or_not_needed() {
        let mut pool = Pool::new(4).unwrap();
        for _ in 0..3 {
            // Longer than anyone stays awake inside a job.
            let slow = |stage, unit| {
                if stage % 2 == 0 && unit == 3 {
                    std::thread::sleep(INSIDE_JOBS * 3);
                }
            };
            let stages = Counting::new(&[8; 6], slow);
            pool.run(Arc::clone(&stages) as Arc<dyn Stages>).unwrap();
            stages.assert_each_once();
            // And now between jobs.
            std::thread::sleep(BETWEEN_JOBS * 50);
        }
    }

    #[test]
    fn all_threads_take_part() {
        let mut pool = Pool::new(3).unwrap();
        let seen = Arc::new(Mutex::new(std::collections::HashSet::new()));
        let shared = Arc::clone(&seen);
        pool.run_grid(30, move |_, _| {
            lock(&shared).insert(std::thread::current().id());
            std::thread::sleep(Duration::from_millis(5));
        })
        .unwrap();
        assert_eq!(lock(&seen).len(), 3);
    }

    #[test]
    fn a_panic_is_reported_and_the_pool_lives_on() {
        for threads in [1, 2, 8] {
            let mut pool = Pool::new(threads).unwrap();
            for _ in 0..20 {
                let stages = Counting::new(&[40; 10], |stage, unit| assert!((stage, unit) != (4, 33), "stage {stage}"));
                let error = pool.run(Arc::clone(&stages) as Arc<dyn Stages>).unwrap_err();
                assert_eq!(error.to_string(), "internal error: a kernel panicked: stage 4");
                // Nobody works on it any more: the stages after it were never begun.
                let later = stages.counts[5..].iter().flatten();
                assert!(later.into_iter().all(|count| count.load(Ordering::Relaxed) == 0));
                let stages = Counting::new(&[40; 10], |_, _| ());
                pool.run(Arc::clone(&stages) as Arc<dyn Stages>).unwrap();
                stages.assert_each_once();
            }
        }
    }
}
