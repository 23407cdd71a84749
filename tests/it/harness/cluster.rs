//! Sluice as a whole, in either mode.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use nix::sys::signal::Signal;
use reqwest::Method;
use sluice_shared::{
    api::{AccountList, JobView, NewJob},
    domain::JobId,
};
use tempfile::TempDir;

use super::{
    Client, Port, Service, Truth,
    process::{Process, Recipe, processes_of, signal_all},
    services::{Addresses, PrivateSet},
    wait::{eventually, eventually_blocking},
};

/// How long what a killed worker leaves behind may take to end.
const STRAYS_END: Duration = Duration::from_secs(5);

/// The master key of every distributed cluster: 32 bytes in base64.
pub(crate) const MASTER_KEY: &str = "dGhlIG1hc3RlciBrZXkgb2YgdGhlIHRlc3Qgc3VpdGU=";

/// In which form Sluice runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// `sluice up`: one process.
    Embedded,
    /// Two `sluice api` and three `sluice worker`.
    Distributed,
}

/// A running Sluice.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// In which form it runs.
    pub(crate) mode: Mode,
    processes: BTreeMap<String, Process>,
    apis: Vec<Client>,
    worker_health: Vec<Client>,
    submits: AtomicUsize,
    /// The API process that took each job, so that another one can be asked for it.
    taken_by: Mutex<HashMap<JobId, usize>>,
    distributed: Option<Distributed>,
    ports: Vec<Port>,
    dir: Option<TempDir>,
}

/// What only the distributed mode has.
#[derive(Debug)]
struct Distributed {
    addresses: Addresses,
    database: String,
    vhost: String,
    private: PrivateSet,
}

impl Cluster {
    /// Starts Sluice with this configuration, and returns when every worker is there.
    pub(crate) async fn start(mode: Mode, config: &str) -> Self {
        match mode {
            Mode::Embedded => Self::embedded(config).await,
            Mode::Distributed => Self::distributed(config, 2, 3, &[]).await,
        }
    }

    pub(crate) async fn embedded(config: &str) -> Self {
        let mut cluster = Self::empty(Mode::Embedded, config);
        cluster.add_api("up");
        Box::pin(cluster.until_up()).await;
        cluster
    }

    /// Starts `apis` API processes and `workers` workers, with services of their own where
    /// `private` says so, and always with a Redis of their own: its wake-ups know no database.
    pub(crate) async fn distributed(
        config: &str,
        apis: usize,
        workers: usize,
        private: &[Service],
    ) -> Self {
        Box::pin(Self::start_distributed(config, apis, workers, private)).await
    }

    async fn start_distributed(
        config: &str,
        apis: usize,
        workers: usize,
        private: &[Service],
    ) -> Self {
        let mut cluster = Self::empty(Mode::Distributed, config);
        let mut services = private.to_vec();
        if !services.contains(&Service::Redis) {
            services.push(Service::Redis);
        }
        let private = PrivateSet::start(&services).await;
        let addresses = private.addresses(&Addresses::shared()).await;
        let database = addresses.create_database().await;
        let vhost = addresses.create_vhost().await;
        cluster.distributed = Some(Distributed {
            addresses,
            database,
            vhost,
            private,
        });
        let migrate = Process::start(cluster.recipe("migrate", &["migrate"]));
        migrate.finish().await;
        for number in 1..=apis {
            cluster.add_api(&format!("api-{number}"));
        }
        for number in 1..=workers {
            cluster.add_worker(&format!("worker-{number}"));
        }
        cluster.until_up().await;
        cluster
    }

    fn empty(mode: Mode, config: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("cluster-")
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .unwrap();
        for folder in ["home", "tmp"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        fs::write(dir.path().join("sluice.toml"), config).unwrap();
        Self {
            mode,
            processes: BTreeMap::new(),
            apis: Vec::new(),
            worker_health: Vec::new(),
            submits: AtomicUsize::new(0),
            taken_by: Mutex::new(HashMap::new()),
            distributed: None,
            ports: Vec::new(),
            dir: Some(dir),
        }
    }

    fn add_api(&mut self, name: &str) {
        let port = Port::lease();
        let listen = format!("127.0.0.1:{}", port.number);
        self.apis.push(Client::new(format!("http://{listen}"), ""));
        self.ports.push(port);
        let role = if self.mode == Mode::Embedded {
            "up"
        } else {
            "api"
        };
        self.add(name, &[role, "--listen", &listen]);
    }

    fn add_worker(&mut self, name: &str) {
        let port = Port::lease();
        let health = format!("127.0.0.1:{}", port.number);
        self.worker_health
            .push(Client::new(format!("http://{health}"), ""));
        self.ports.push(port);
        self.add(name, &["worker", "--id", name, "--health-listen", &health]);
    }

    fn add(&mut self, name: &str, arguments: &[&str]) {
        let process = Process::start(self.recipe(name, arguments));
        self.processes.insert(name.to_owned(), process);
    }

    fn recipe(&self, name: &str, arguments: &[&str]) -> Recipe {
        let config = self.dir().join("sluice.toml").display().to_string();
        let arguments = arguments.iter().map(|argument| (*argument).to_owned());
        Recipe {
            name: name.to_owned(),
            arguments: arguments.chain(["--config".to_owned(), config]).collect(),
            environment: self.environment(name.starts_with("worker")),
            dir: self.dir().to_owned(),
        }
    }

    /// What a process gets. A worker gets no database: it needs none.
    fn environment(&self, worker: bool) -> Vec<(String, String)> {
        let path = |name: &str| self.dir().join(name).display().to_string();
        let mut variables = vec![
            ("HOME", path("home")),
            ("TMPDIR", path("tmp")),
            ("SLUICE_HOME", path("home/sluice")),
            ("SLUICE_LOG__LEVEL", "debug,h2=info,hyper=info".to_owned()),
        ];
        if let Some(distributed) = &self.distributed {
            let rabbitmq = distributed.rabbitmq().to_string();
            variables.push(("SLUICE_RABBITMQ__URL", rabbitmq));
            variables.push(("SLUICE_MASTER_KEY", MASTER_KEY.to_owned()));
            variables.push(("SLUICE_REDIS__URL", distributed.addresses.redis.to_string()));
            if !worker {
                variables.push(("SLUICE_POSTGRES__URL", distributed.postgres().to_string()));
                // Many clusters share one Postgres.
                variables.push(("SLUICE_POSTGRES__MAX_CONNECTIONS", "6".to_owned()));
            }
        }
        variables
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }

    /// Waits until every process runs, and every API is ready and sees all workers at every
    /// account.
    pub(crate) async fn until_up(&mut self) {
        let key_file = self.home().join("admin.key");
        let workers = u32::try_from(self.workers().len()).unwrap();
        for index in 0..self.apis.len() {
            let what = format!("API {index} is ready, with {workers} workers at each account");
            let url = self.apis[index].url.clone();
            let key = eventually(&what, async || {
                for (name, process) in &mut self.processes {
                    assert!(
                        process.is_running(),
                        "{name} has ended:\n{}",
                        process.log_tail()
                    );
                }
                let key = fs::read_to_string(&key_file).ok()?.trim().to_owned();
                let api = Client::new(&url, &key);
                let ready = api
                    .try_send(api.request(Method::GET, "/health/ready"))
                    .await
                    .ok()?;
                let answer = api
                    .try_send(api.request(Method::GET, "/api/accounts"))
                    .await
                    .ok()?;
                if ready.status != 200 || answer.status != 200 {
                    return None;
                }
                let list: AccountList = answer.is(200);
                list.accounts
                    .iter()
                    .all(|account| account.workers == Some(workers))
                    .then_some(key)
            })
            .await;
            self.apis[index].key = key;
        }
    }

    /// Its own folder.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.as_ref().expect("it lives").path()
    }

    /// Its `SLUICE_HOME`.
    pub(crate) fn home(&self) -> PathBuf {
        self.dir().join("home/sluice")
    }

    /// The address of its own virtual host in RabbitMQ, with the key to it.
    pub(crate) fn rabbitmq(&self) -> url::Url {
        self.distributed
            .as_ref()
            .expect("it is distributed")
            .rabbitmq()
    }

    /// The address of its own database in Postgres, with the key to it.
    pub(crate) fn postgres(&self) -> url::Url {
        self.distributed
            .as_ref()
            .expect("it is distributed")
            .postgres()
    }

    /// A look at the truth plane from outside.
    pub(crate) async fn truth(&self) -> Truth {
        match &self.distributed {
            Some(distributed) => Truth::postgres(&distributed.postgres()).await,
            None => Truth::sqlite(&self.home().join("sluice.db")).await,
        }
    }

    /// Any API process.
    pub(crate) fn api(&self) -> &Client {
        &self.apis[self.submits.fetch_add(1, Ordering::Relaxed) % self.apis.len()]
    }

    /// Every API process.
    pub(crate) fn apis(&self) -> &[Client] {
        &self.apis
    }

    /// The small server of each worker process, where it is a process of its own.
    pub(crate) fn worker_health(&self) -> &[Client] {
        &self.worker_health
    }

    /// Submits a job, to each API process in turn.
    pub(crate) async fn submit(&self, job: &NewJob) -> JobId {
        self.submit_many(std::slice::from_ref(job)).await[0]
    }

    /// Submits jobs as one array, to each API process in turn.
    pub(crate) async fn submit_many(&self, jobs: &[NewJob]) -> Vec<JobId> {
        let index = self.submits.fetch_add(1, Ordering::Relaxed) % self.apis.len();
        let receipts = self.apis[index].submit_many(jobs).await;
        let ids: Vec<JobId> = receipts.iter().map(|receipt| receipt.id).collect();
        self.taken_by
            .lock()
            .unwrap()
            .extend(ids.iter().map(|id| (*id, index)));
        ids
    }

    /// An API process that did not take this job, where there is one.
    pub(crate) fn other_api(&self, id: JobId) -> &Client {
        let taken_by = self
            .taken_by
            .lock()
            .unwrap()
            .get(&id)
            .copied()
            .unwrap_or_default();
        &self.apis[(taken_by + 1) % self.apis.len()]
    }

    /// The job as it is now, from an API process that did not take it.
    pub(crate) async fn job(&self, id: JobId) -> JobView {
        self.other_api(id).job(id).await
    }

    /// The job at its end, from an API process that did not take it.
    pub(crate) async fn wait(&self, id: JobId) -> JobView {
        let api = self.other_api(id);
        eventually(&format!("job {id} ends"), async || {
            Some(api.poll(id, "20s").await).filter(|job| job.state.is_terminal())
        })
        .await
    }

    /// These jobs at their ends.
    pub(crate) async fn wait_all(&self, ids: &[JobId]) -> Vec<JobView> {
        let mut jobs = Vec::with_capacity(ids.len());
        for id in ids {
            jobs.push(self.wait(*id).await);
        }
        jobs
    }

    /// The job as soon as `is` holds.
    pub(crate) async fn until(
        &self,
        id: JobId,
        what: &str,
        is: impl Fn(&JobView) -> bool,
    ) -> JobView {
        eventually(&format!("job {id} {what}"), async || {
            Some(self.job(id).await).filter(&is)
        })
        .await
    }

    /// Runs a prompt to its end.
    pub(crate) async fn run(&self, job: &NewJob) -> JobView {
        let id = self.submit(job).await;
        self.wait(id).await
    }

    /// The names of the processes that run prompts.
    pub(crate) fn workers(&self) -> Vec<String> {
        let runs_prompts = |name: &&String| *name == "up" || name.starts_with("worker");
        self.processes
            .keys()
            .filter(runs_prompts)
            .cloned()
            .collect()
    }

    /// The names of the processes that serve the API.
    pub(crate) fn servers(&self) -> Vec<String> {
        let serves = |name: &&String| *name == "up" || name.starts_with("api");
        self.processes.keys().filter(serves).cloned().collect()
    }

    pub(crate) fn process(&mut self, name: &str) -> &mut Process {
        self.processes
            .get_mut(name)
            .unwrap_or_else(|| panic!("there is no process {name}"))
    }

    /// Ends a process as a crash does.
    pub(crate) fn kill9(&mut self, name: &str) {
        self.process(name).kill9();
    }

    /// Starts a process again that was killed or stopped.
    pub(crate) fn start_again(&mut self, name: &str) {
        self.process(name).start_again();
    }

    /// Starts a process again with another value of a variable.
    pub(crate) fn start_with(&mut self, name: &str, variable: &str, value: &str) {
        let process = self.process(name);
        process.set(variable, value);
        process.start_again();
    }

    /// Asks a process to end, and waits until it has.
    pub(crate) async fn stop(&mut self, name: &str) -> ExitStatus {
        self.process(name).stop(Duration::from_secs(40)).await
    }

    /// Ends a service of its own as a crash does.
    pub(crate) async fn kill9_service(&self, service: Service) {
        self.private().kill9(service).await;
    }

    /// Stops a service of its own where it is: it neither answers nor goes away.
    pub(crate) fn freeze_service(&self, service: Service) {
        self.private().freeze(service);
    }

    /// Lets a frozen service go on.
    pub(crate) fn thaw_service(&self, service: Service) {
        self.private().thaw(service);
    }

    /// Brings a service of its own back; returns when it serves.
    pub(crate) async fn start_service(&self, service: Service) {
        self.private().start_again(service).await;
    }

    fn private(&self) -> &PrivateSet {
        &self
            .distributed
            .as_ref()
            .expect("it is distributed")
            .private
    }

    /// What every process has printed, by name.
    pub(crate) fn logs(&self) -> BTreeMap<String, String> {
        let log = |(name, process): (&String, &Process)| (name.clone(), process.log());
        self.processes.iter().map(log).collect()
    }

    /// Runs the client of the command line against this cluster, with the key that lies in its
    /// data folder.
    pub(crate) fn cli(&self, arguments: &[&str]) -> tokio::process::Command {
        let mut environment = self.environment(true);
        environment.retain(|(name, _)| !name.contains("__"));
        environment.push(("SLUICE_URL".to_owned(), self.apis[0].url.clone()));
        let mut command = tokio::process::Command::from(super::hermetic(&environment));
        command
            .args(arguments)
            .current_dir(self.dir())
            .stdin(std::process::Stdio::null());
        command.kill_on_drop(true);
        command
    }
}

impl Distributed {
    fn postgres(&self) -> url::Url {
        let mut url = self.addresses.postgres.clone();
        url.set_path(&self.database);
        url
    }

    fn rabbitmq(&self) -> url::Url {
        let mut url = self.addresses.rabbitmq.clone();
        url.set_path(&self.vhost);
        url
    }

    /// Removes what it has in services that others use, from a thread of its own: a destructor
    /// may run inside of a runtime.
    fn clean_up(&self) {
        let clean = async {
            if !self.private.has(Service::Postgres) {
                self.addresses.drop_database(&self.database).await;
            }
            if !self.private.has(Service::RabbitMq) {
                self.addresses.delete_vhost(&self.vhost).await;
            }
        };
        std::thread::scope(|scope| {
            let work = || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                runtime.unwrap().block_on(clean);
            };
            let cleaned = scope.spawn(work).join();
            assert!(
                cleaned.is_ok() || std::thread::panicking(),
                "the services are not clean"
            );
        });
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        self.processes.values_mut().for_each(Process::kill9);
        if failed {
            for process in self.processes.values() {
                eprintln!("{}", process.log_tail());
            }
        }
        let dir = self.dir.take().expect("it lives");
        let none_left = || processes_of(dir.path()).is_empty();
        let clean = eventually_blocking(STRAYS_END, none_left);
        let left = if clean {
            Vec::new()
        } else {
            processes_of(dir.path())
        };
        signal_all(&left, Signal::SIGKILL);
        if let Some(distributed) = self.distributed.take() {
            distributed.clean_up();
        }
        if failed {
            eprintln!(
                "--- data and whole logs are kept in {}",
                dir.keep().display()
            );
        } else {
            assert!(left.is_empty(), "processes are left behind: {left:?}");
            dir.close().expect("its folder can be removed");
        }
    }
}
