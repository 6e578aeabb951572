//! Where plans run: in this process, or on the executors of a scheduler. The same plans and the same functions, in the same configuration.

use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ballista_core::config::TaskSchedulingPolicy;
use ballista_core::extension::{SessionConfigExt, SessionStateExt};
use ballista_core::registry::BallistaFunctionRegistry;
use ballista_core::utils::default_session_builder;
use ballista_executor::executor_process::{ExecutorProcessConfig, start_executor_process};
use ballista_scheduler::cluster::BallistaCluster;
use ballista_scheduler::config::SchedulerConfig;
use ballista_scheduler::scheduler_process::start_server;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::{FunctionRegistry, SessionStateBuilder};
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::StreamExt;
use sysinfo::System;

use crate::error::EngineError;
use crate::functions;
use crate::keep::Writer;

/// Where plans run.
#[derive(Debug, Clone)]
pub enum Place {
    /// In this process, on its threads.
    Here,
    /// On the executors of a scheduler at this address, which see the same files under the same paths.
    Cluster(String),
}

/// How a plan is cut.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// Into how many tasks a stage goes at most.
    pub n_tasks: usize,
    /// How many rows are worked on at once.
    pub n_rows: usize,
}

/// A table of a plan: Parquet files with one schema.
#[derive(Debug, Clone, Copy)]
pub struct Table<'a> {
    /// Its name in the plan.
    pub name: &'a str,
    /// Its files.
    pub files: &'a [PathBuf],
    /// Its columns.
    pub schema: &'a SchemaRef,
}

/// How often a plan is started again after executors were lost with results that nobody had fetched. What was kept is not done twice.
const N_ATTEMPTS: usize = 3;

/// What takes the rows of a plan, as they come.
pub trait Sink {
    /// Takes some.
    fn add(&mut self, batch: RecordBatch) -> Result<(), EngineError>;
}

impl Sink for Vec<RecordBatch> {
    fn add(&mut self, batch: RecordBatch) -> Result<(), EngineError> {
        self.push(batch);
        Ok(())
    }
}

impl Sink for Writer {
    fn add(&mut self, batch: RecordBatch) -> Result<(), EngineError> {
        Writer::add(self, &batch)
    }
}

/// What runs plans.
#[derive(Debug)]
pub struct Engine {
    place: Place,
    /// What plans in this process sort, group and join with.
    runtime: Arc<RuntimeEnv>,
    memory: usize,
    spilled: AtomicUsize,
}

impl Engine {
    /// Plans of this process have so many bytes to sort, group and join in, and what they have no room for goes to files in a folder. Executors have their own.
    pub fn new(place: &Place, memory: usize, spill: &Path) -> Result<Engine, EngineError> {
        if let Place::Cluster(address) = place {
            reach(address)?;
        }
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(FairSpillPool::new(memory)))
            .with_temp_file_path(spill)
            .build_arc()?;
        Ok(Engine { place: place.clone(), runtime, memory, spilled: AtomicUsize::new(0) })
    }

    /// Where plans run.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// How many bytes plans of this process have put into files for want of memory.
    pub fn n_spilled(&self) -> usize {
        self.spilled.load(Ordering::Relaxed)
    }

    /// Runs a query over tables, and gives its rows to a sink; to a new one for each attempt.
    pub async fn query<S: Sink>(
        &self,
        cut: Cut,
        tables: &[Table<'_>],
        query: &str,
        sink: impl Fn() -> Result<S, EngineError>,
    ) -> Result<S, EngineError> {
        let mut attempt = 1;
        loop {
            match self.query_once(cut, tables, query, sink()?).await {
                Err(EngineError::Plan(_)) if attempt < N_ATTEMPTS && matches!(self.place, Place::Cluster(_)) => {
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    async fn query_once<S: Sink>(
        &self,
        cut: Cut,
        tables: &[Table<'_>],
        query: &str,
        mut sink: S,
    ) -> Result<S, EngineError> {
        let context = self.context(cut)?;
        for table in tables {
            let urls: Result<Vec<ListingTableUrl>, DataFusionError> =
                table.files.iter().map(|file| ListingTableUrl::parse(url(file))).collect();
            let options = ListingOptions::new(Arc::new(ParquetFormat::default())).with_file_extension(".parquet");
            let config = ListingTableConfig::new_with_multi_paths(urls?)
                .with_listing_options(options)
                .with_schema(table.schema.clone());
            context.register_table(table.name, Arc::new(ListingTable::try_new(config)?))?;
        }
        let plan = context.sql(query).await?.create_physical_plan().await?;
        let mut rows = execute_stream(plan.clone(), context.task_ctx())?;
        while let Some(batch) = rows.next().await {
            sink.add(batch?)?;
        }
        self.spilled.fetch_add(spilled_bytes(plan.as_ref()), Ordering::Relaxed);
        Ok(sink)
    }

    fn context(&self, cut: Cut) -> Result<SessionContext, EngineError> {
        // With one task alone joins would keep a side in memory; in sorted runs they can go to disk.
        let n_tasks = cut.n_tasks.max(2);
        // What each sort sets aside to merge its runs with; the longest plan here has eight of them in each task, and others need memory too.
        let reserved = (self.memory / (64 * n_tasks)).min(MAX_SORT_RESERVE);
        // The scheduler's adaptive planner plans some of these without end: each stage that ends adds another.
        let config = SessionConfig::new_with_ballista()
            .with_ballista_adaptive_query_planner(false)
            .with_target_partitions(n_tasks)
            .with_batch_size(cut.n_rows.min((self.memory / BATCH_SHARE).max(MIN_BATCH)))
            .with_sort_spill_reservation_bytes(reserved)
            .set_bool("datafusion.optimizer.prefer_hash_join", false);
        let state = SessionStateBuilder::new()
            .with_default_features()
            .with_config(config)
            .with_runtime_env(self.runtime.clone())
            .build();
        let state = match &self.place {
            Place::Here => state,
            Place::Cluster(address) => state.upgrade_for_ballista(format!("http://{address}"))?,
        };
        let context = SessionContext::new_with_state(state);
        for function in functions::all() {
            context.register_udf(function.as_ref().clone());
        }
        Ok(context)
    }
}

fn spilled_bytes(plan: &dyn ExecutionPlan) -> usize {
    let own = plan.metrics().and_then(|metrics| metrics.spilled_bytes()).unwrap_or(0);
    own + plan.children().into_iter().map(|child| spilled_bytes(child.as_ref())).sum::<usize>()
}

/// A batch of rows without texts is some hundred bytes a row, of which each of some thirty sorts and groups of a plan needs one at least.
const BATCH_SHARE: usize = 1 << 15;

/// Smaller batches cost more than they save. A single row is never cut.
const MIN_BATCH: usize = 64;

/// DataFusion's own choice.
const MAX_SORT_RESERVE: usize = 10 << 20;

/// Half of the memory that this process may take: the other half is for the documents that are judged meanwhile.
pub fn default_memory() -> usize {
    let mut system = System::new();
    system.refresh_memory();
    let limit = system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory);
    let total = system.total_memory().min(limit).max(MIN_MEMORY);
    usize::try_from(total / 2).unwrap_or(usize::MAX)
}

/// What a machine is taken to have that does not say.
const MIN_MEMORY: u64 = 1 << 30;

/// Whether something answers at a scheduler's address: what plans would say of that is longer, and later.
fn reach(scheduler: &str) -> Result<(), EngineError> {
    let address = address(scheduler)?;
    let connection = TcpStream::connect_timeout(&address, CONNECT);
    connection.map(drop).map_err(|error| EngineError::NoScheduler { address: scheduler.to_owned(), error })
}

/// How long a scheduler may take to answer.
const CONNECT: Duration = Duration::from_secs(5);

/// The URL of a file: in a plain path engines look for wildcards.
fn url(file: &Path) -> String {
    let escape = |text: String, (from, to): (char, &str)| text.replace(from, to);
    let escaped =
        [('%', "%25"), ('?', "%3F"), ('#', "%23")].into_iter().fold(file.to_string_lossy().into_owned(), escape);
    format!("file://{escaped}")
}

/// Runs a scheduler until it is stopped. An executor that says nothing for `timeout` is given up, and its tasks go to others.
pub async fn run_scheduler(bind: &str, timeout: Duration) -> Result<(), EngineError> {
    let address = address(bind)?;
    let seconds = timeout.as_secs().max(1);
    let config = SchedulerConfig {
        bind_host: address.ip().to_string(),
        bind_port: address.port(),
        external_host: address.ip().to_string(),
        scheduling_policy: TaskSchedulingPolicy::PullStaged,
        executor_timeout_seconds: seconds,
        expire_dead_executor_interval_seconds: seconds.div_ceil(4),
        no_executors_grace_period_seconds: seconds,
        override_session_builder: Some(Arc::new(|config| {
            let mut state = default_session_builder(config)?;
            for function in functions::all() {
                state.register_udf(function)?;
            }
            Ok(state)
        })),
        ..SchedulerConfig::default()
    };
    let cluster = BallistaCluster::new_from_config(&config).await?;
    Ok(start_server(cluster, address, Arc::new(config)).await?)
}

/// An executor of a scheduler.
#[derive(Debug, Clone)]
pub struct Executor<'a> {
    /// The scheduler's address.
    pub scheduler: &'a str,
    /// The address of this machine by which others fetch what it has; a free port if the port is 0.
    pub bind: &'a str,
    /// How many tasks it runs at once.
    pub n_tasks: usize,
    /// Where what goes between stages is put.
    pub folder: &'a Path,
    /// How many bytes all tasks together sort, group and join in; what they have no room for goes to the folder.
    pub memory: usize,
}

/// Runs an executor until it is stopped.
pub async fn run_executor(executor: Executor<'_>) -> Result<(), EngineError> {
    let scheduler = address(executor.scheduler)?;
    let bind = address(executor.bind)?;
    // The scheduler may have been started in the same moment.
    let mut last = reach(executor.scheduler);
    for _ in 0..WAIT.as_secs() {
        if last.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        last = reach(executor.scheduler);
    }
    last?;
    let mut registry = BallistaFunctionRegistry::default();
    for function in functions::all() {
        registry.scalar_functions.insert(function.name().to_owned(), function);
    }
    let config = ExecutorProcessConfig {
        bind_host: bind.ip().to_string(),
        external_host: Some(bind.ip().to_string()),
        port: if bind.port() == 0 { free_port(bind)? } else { bind.port() },
        scheduler_host: scheduler.ip().to_string(),
        scheduler_port: scheduler.port(),
        scheduler_connect_timeout_seconds: 30,
        vcores: executor.n_tasks,
        memory_pool_size: Some(executor.memory.max(executor.n_tasks) as u64),
        task_scheduling_policy: TaskSchedulingPolicy::PullStaged,
        work_dir: Some(executor.folder.to_string_lossy().into_owned()),
        override_function_registry: Some(Arc::new(registry)),
        ..ExecutorProcessConfig::default()
    };
    Ok(start_executor_process(Arc::new(config)).await?)
}

/// How long an executor waits for its scheduler.
const WAIT: Duration = Duration::from_secs(10);

fn address(text: &str) -> Result<SocketAddr, EngineError> {
    let none = || EngineError::Address(text.to_owned());
    // Ballista makes URLs of host and port, which IPv6 would need brackets in.
    text.to_socket_addrs().map_err(|_| none())?.find(SocketAddr::is_ipv4).ok_or_else(none)
}

/// A port that was free a moment ago: the executor takes a number only.
fn free_port(bind: SocketAddr) -> Result<u16, EngineError> {
    let port = TcpListener::bind(bind).and_then(|listener| listener.local_addr()).map(|address| address.port());
    port.map_err(EngineError::at(Path::new(&bind.to_string())))
}
