//! The servers that the tests of a process share: those of `TEST_DATABASE_URL` and `TEST_REDIS_URL` where
//! set, containers with `TEST_CONTAINERS=1`, else private ones as `aftercommit dev` has. `TEST_POSTGRES_BIN`
//! names the directory of the private Postgres's programs.

use std::path::PathBuf;
use std::sync::OnceLock;

use aftercommit::local::{self, Home, PostgresServer, RedisServer};
use secrecy::ExposeSecret;
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, ContainerRequest, Image, ImageExt};
use testcontainers_modules::{postgres, redis};

use super::supervisor::{Supervisor, at_exit};

/// Settings beyond the defaults, for the outbox's test and for many tests at once.
const POSTGRES_SETTINGS: [(&str, &str); 3] =
    [("max_prepared_transactions", "50"), ("max_connections", "400"), ("shared_buffers", "64MB")];

/// Where the shared servers are, and what keeps them alive.
#[derive(Debug)]
pub(super) struct Servers {
    pub(super) database_url: String,
    pub(super) redis_url: String,
    _alive: Vec<Alive>,
}

#[derive(Debug)]
#[expect(dead_code, reason = "held, not used: dropping one ends its server")]
enum Alive {
    Postgres(PostgresServer),
    Redis(RedisServer),
    PostgresContainer(ContainerAsync<postgres::Postgres>, Supervisor),
    RedisContainer(ContainerAsync<redis::Redis>, Supervisor),
}

/// The shared servers; started by the first test that asks.
pub(super) fn servers() -> &'static Servers {
    static SERVERS: OnceLock<Servers> = OnceLock::new();
    SERVERS.get_or_init(|| {
        // A runtime of its own: those of the tests end with their tests.
        let starting = std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            let runtime = Box::leak(Box::new(runtime.expect("a runtime")));
            runtime.block_on(start())
        });
        starting.join().expect("the servers start")
    })
}

async fn start() -> Servers {
    let given = |name| std::env::var(name).ok().filter(|url| !url.is_empty());
    let in_containers = given("TEST_CONTAINERS").is_some();
    let mut alive = Vec::new();
    let database_url = match given("TEST_DATABASE_URL") {
        Some(url) => url,
        None if in_containers => postgres_container(&mut alive).await,
        None => {
            let settings = POSTGRES_SETTINGS.map(|(name, value)| (name, value.to_owned())).into();
            let server = start_postgres(settings).await;
            let url = server.url(local::postgres::DATABASE).expose_secret().to_owned();
            alive.push(Alive::Postgres(server));
            url
        }
    };
    let redis_url = match given("TEST_REDIS_URL") {
        Some(url) => url,
        None if in_containers => redis_container(&mut alive).await,
        None => {
            let home = Home::Ephemeral;
            let options = local::redis::Options { home, port: None, durable: false, settings: Vec::new() };
            let server = RedisServer::start(&options).await.expect("a private Redis");
            let url = server.url().expose_secret().to_owned();
            alive.push(Alive::Redis(server));
            url
        }
    };
    Servers { database_url, redis_url, _alive: alive }
}

/// A private Postgres, of the programs in `TEST_POSTGRES_BIN` where set.
pub(crate) async fn start_postgres(settings: Vec<(&str, String)>) -> PostgresServer {
    let settings = settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let programs = std::env::var_os("TEST_POSTGRES_BIN").filter(|bin| !bin.is_empty()).map(PathBuf::from);
    let options =
        local::postgres::Options { home: Home::Ephemeral, programs, port: None, durable: false, settings };
    PostgresServer::start(&options).await.expect("a private Postgres")
}

async fn postgres_container(alive: &mut Vec<Alive>) -> String {
    let settings =
        POSTGRES_SETTINGS.iter().flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]);
    let (name, tag) = image("TEST_POSTGRES_IMAGE", "postgres:17");
    let image = postgres::Postgres::default().with_name(name).with_tag(tag);
    let image = image.with_cmd(std::iter::once("postgres".to_owned()).chain(settings));
    let (container, supervisor, port) = run(image, 5432).await;
    alive.push(Alive::PostgresContainer(container, supervisor));
    format!("postgres://postgres:postgres@127.0.0.1:{port}/postgres")
}

async fn redis_container(alive: &mut Vec<Alive>) -> String {
    let (name, tag) = image("TEST_REDIS_IMAGE", "redis:7");
    let image = redis::Redis::default().with_name(name).with_tag(tag);
    let (container, supervisor, port) = run(image, 6379).await;
    alive.push(Alive::RedisContainer(container, supervisor));
    format!("redis://127.0.0.1:{port}")
}

async fn run<I: Image>(image: ContainerRequest<I>, port: u16) -> (ContainerAsync<I>, Supervisor, u16) {
    let container = image.start().await.expect("a container: is a Docker daemon running?");
    // Containers outlive the process that started them, and a static is never dropped.
    let supervisor = at_exit(&format!("docker rm -f -v {}", container.id()));
    let port = container.get_host_port_ipv4(port).await.expect("a port");
    (container, supervisor, port)
}

/// An image's name and tag: `variable` where set.
fn image(variable: &str, default: &str) -> (String, String) {
    let image = std::env::var(variable).unwrap_or_else(|_| default.to_owned());
    let (name, tag) = image.rsplit_once(':').expect("an image name with a tag");
    (name.to_owned(), tag.to_owned())
}
