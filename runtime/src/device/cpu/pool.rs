//! Threads that are made once and then share one job after the other: how they start, meet and stop.
//!
//! A job is one closure that every thread runs, given its number; inside it the threads meet at a [`Barrier`] as often as they like. So a
//! whole call of a plan, hundreds of launches, costs one start and one end, and between launches only the barrier, which is a few hundred
//! nanoseconds while everybody spins. Whoever waits longer first yields and then sleeps, so that an idle session costs nothing and a busy
//! machine is not blocked by spinning.
//!
//! A thread that panics poisons the barrier: all others leave the job at their next meeting, and [`Pool::run`] reports the panic. The pool
//! can be used again.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::RuntimeError;

/// Polls before yielding: about as long as a small launch, some microseconds.
const SPINS: u32 = 2_000;
/// How long a worker waits awake for the next job. Decoding leaves the workers idle for the time of sampling and printing between calls,
/// and waking them costs about 50 microseconds each.
const BETWEEN_JOBS: Duration = Duration::from_micros(300);
/// How long a thread waits awake for the others inside a job.
const INSIDE_JOBS: Duration = Duration::from_millis(5);

/// Work that all threads share: called once on each with its number, from 0.
type Job = dyn Fn(usize, &Barrier) + Send + Sync;

/// The threads.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    barrier: Barrier,
    /// The job of the current round; none between jobs.
    job: Mutex<Option<Arc<Job>>>,
    /// Advances when a job is there, and when the pool is dropped.
    start: Signal,
    /// Workers that have finished the current job.
    finished: AtomicUsize,
    /// Advances when all workers have finished.
    end: Signal,
    stop: AtomicBool,
    /// What the first thread that panicked said.
    panic: Mutex<Option<String>>,
}

impl Pool {
    /// A pool of so many threads, at least 1, the calling one included.
    pub(crate) fn new(threads: usize) -> Result<Self, RuntimeError> {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            barrier: Barrier::new(threads),
            job: Mutex::new(None),
            start: Signal::default(),
            finished: AtomicUsize::new(0),
            end: Signal::default(),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
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
        self.shared.barrier.threads
    }

    /// Runs `job` once on every thread and returns when all have left it.
    pub(crate) fn run(&mut self, job: impl Fn(usize, &Barrier) + Send + Sync + 'static) -> Result<(), RuntimeError> {
        let shared = &*self.shared;
        let job: Arc<Job> = Arc::new(job);
        let end = shared.end.value();
        shared.finished.store(0, Ordering::Relaxed);
        if !self.workers.is_empty() {
            *lock(&shared.job) = Some(Arc::clone(&job));
            shared.start.advance();
        }
        shared.execute(&*job, 0);
        if !self.workers.is_empty() {
            shared.end.wait_beyond(end, INSIDE_JOBS);
            *lock(&shared.job) = None;
        }
        match lock(&shared.panic).take() {
            None => Ok(()),
            Some(message) => {
                shared.barrier.clear();
                Err(RuntimeError::Panicked { message })
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.start.advance();
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
            seen = self.start.wait_beyond(seen, BETWEEN_JOBS);
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            let job = lock(&self.job).clone();
            if let Some(job) = job {
                self.execute(&*job, thread);
                // What the job owns must be gone when the pool says that the job is done.
                drop(job);
                if self.finished.fetch_add(1, Ordering::AcqRel) + 2 == self.barrier.threads {
                    self.end.advance();
                }
            }
        }
    }

    fn execute(&self, job: &Job, thread: usize) {
        // The job sees a barrier that sends everyone away after a panic, and its data is not used after one.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(thread, &self.barrier))) {
            lock(&self.panic).get_or_insert_with(|| panic_message(&*panic));
            self.barrier.poison();
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

/// Where all threads of a job wait for each other.
pub(crate) struct Barrier {
    threads: usize,
    arrived: AtomicUsize,
    generation: Signal,
    poisoned: AtomicBool,
}

impl Barrier {
    fn new(threads: usize) -> Self {
        Self { threads, arrived: AtomicUsize::new(0), generation: Signal::default(), poisoned: AtomicBool::new(false) }
    }

    /// Waits for all threads; what each wrote before is then seen by all. `false` if one of them panicked: leave the job.
    #[must_use]
    pub(crate) fn wait(&self) -> bool {
        if self.threads == 1 {
            return true;
        }
        let generation = self.generation.value();
        if self.poisoned.load(Ordering::Acquire) {
            return false;
        }
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
            self.arrived.store(0, Ordering::Relaxed);
            self.generation.advance();
        } else {
            self.generation.wait_beyond(generation, INSIDE_JOBS);
        }
        !self.poisoned.load(Ordering::Acquire)
    }

    fn poison(&self) {
        self.poisoned.store(true, Ordering::Release);
        self.generation.advance();
    }

    /// Makes it usable again when nobody is in a job.
    fn clear(&self) {
        self.arrived.store(0, Ordering::Relaxed);
        self.poisoned.store(false, Ordering::Release);
    }
}

/// A counter that threads wait on: awake first, then asleep.
#[derive(Default)]
struct Signal {
    value: AtomicU64,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    bell: Condvar,
}

impl Signal {
    fn value(&self) -> u64 {
        self.value.load(Ordering::Acquire)
    }

    fn advance(&self) {
        // Sequentially consistent, as is the other side: either a sleeper sees the new value, or it is seen here.
        self.value.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) != 0 {
            drop(lock(&self.lock));
            self.bell.notify_all();
        }
    }

    /// Waits until the value is not `seen`, awake for about `patience`, and returns it.
    fn wait_beyond(&self, seen: u64, patience: Duration) -> u64 {
        for _ in 0..SPINS {
            let value = self.value();
            if value != seen {
                return value;
            }
            std::hint::spin_loop();
        }
        let start = Instant::now();
        while start.elapsed() < patience {
            let value = self.value();
            if value != seen {
                return value;
            }
            std::thread::yield_now();
        }
        let mut guard = lock(&self.lock);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let value = loop {
            let value = self.value.load(Ordering::SeqCst);
            if value != seen {
                break value;
            }
            guard = self.bell.wait(guard).unwrap_or_else(PoisonError::into_inner);
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        value
    }
}

/// The units that a thread does of a grid: contiguous, sizes differ by at most one, in order of the threads.
pub(crate) fn part(units: u64, thread: usize, threads: usize) -> (i64, i64) {
    let (units, threads) = (u128::from(units), threads as u128);
    let bound = |thread: usize| (units * thread as u128 / threads) as i64;
    (bound(thread), bound(thread + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_every_unit_once_in_order() {
        for units in [0, 1, 2, 7, 16, 1000, u64::from(u32::MAX)] {
            for threads in [1, 2, 3, 7, 64] {
                let parts: Vec<_> = (0..threads).map(|thread| part(units, thread, threads)).collect();
                assert_eq!((parts[0].0, parts[threads - 1].1), (0, units as i64));
                assert!(parts.windows(2).all(|pair| pair[0].1 == pair[1].0));
                let sizes: Vec<_> = parts.iter().map(|(begin, end)| end - begin).collect();
                assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
            }
        }
    }

    #[test]
    fn every_unit_is_done_exactly_once_in_every_job() {
        for threads in [1, 2, 5, 16] {
            let mut pool = Pool::new(threads).unwrap();
            let counts: Arc<Vec<AtomicUsize>> = Arc::new((0..1003).map(|_| AtomicUsize::new(0)).collect());
            for round in 1..=50 {
                let shared = Arc::clone(&counts);
                pool.run(move |thread, barrier| {
                    let (begin, end) = part(shared.len() as u64, thread, threads);
                    for count in &shared[begin as usize..end as usize] {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    assert!(barrier.wait());
                    // After the barrier the units of all other threads are done, too.
                    assert!(shared.iter().all(|count| count.load(Ordering::Relaxed) == round));
                    assert!(barrier.wait());
                })
                .unwrap();
            }
            assert_eq!(Arc::strong_count(&counts), 1, "a job is gone when `run` returns");
        }
    }

    #[test]
    fn threads_meet_at_every_barrier_even_after_long_waits() {
        let threads = 4;
        let mut pool = Pool::new(threads).unwrap();
        let turn = Arc::new(AtomicUsize::new(0));
        let shared = Arc::clone(&turn);
        pool.run(move |thread, barrier| {
            for round in 0..200 {
                if round % threads == thread {
                    if round % 50 == 0 {
                        // Longer than anyone stays awake.
                        std::thread::sleep(INSIDE_JOBS * 3);
                    }
                    assert_eq!(shared.fetch_add(1, Ordering::Relaxed), round);
                }
                assert!(barrier.wait());
            }
        })
        .unwrap();
        assert_eq!(turn.load(Ordering::Relaxed), 200);
        // The workers fall asleep between jobs and wake up again.
        std::thread::sleep(BETWEEN_JOBS * 100);
        pool.run(|_, barrier| assert!(barrier.wait())).unwrap();
    }

    #[test]
    fn a_panic_is_reported_and_the_pool_lives_on() {
        for threads in [1, 2, 8] {
            for culprit in [0, threads - 1] {
                let mut pool = Pool::new(threads).unwrap();
                for round in 0..3 {
                    let error = pool
                        .run(move |thread, barrier| {
                            for step in 0..10 {
                                assert!(thread != culprit || step != 4, "round {round}");
                                if !barrier.wait() {
                                    return;
                                }
                            }
                        })
                        .unwrap_err();
                    assert_eq!(error.to_string(), format!("internal error: a kernel panicked: round {round}"));
                    let count = Arc::new(AtomicUsize::new(0));
                    let shared = Arc::clone(&count);
                    pool.run(move |_, barrier| {
                        shared.fetch_add(1, Ordering::Relaxed);
                        assert!(barrier.wait());
                    })
                    .unwrap();
                    assert_eq!(count.load(Ordering::Relaxed), threads);
                }
            }
        }
    }
}
