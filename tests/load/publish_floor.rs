//! The floor of a drain: a loop that does only what no relay can leave out. For each event one XADD and two
//! PUBLISH, in a script without a single check, with calls that were made before the clock started.

use std::time::{Duration, Instant};

use aftercommit::event::{StreamId, Topic};
use aftercommit::redis::keys::Keys;
use futures_util::{StreamExt, stream};
use redis::{Cmd, Script};
use secrecy::ExposeSecret;
use uuid::Uuid;

use crate::cost::Cost;
use crate::harness::{redis_settings_of, start_redis};

/// Events of one call: `[relay] chunk_size`.
const CHUNK: usize = 256;
/// Calls under way at once, so that Redis never waits.
const UNDER_WAY: usize = 4;

const SCRIPT: &str = "
for a = 1, #ARGV, 9 do
  redis.call('XADD', KEYS[tonumber(ARGV[a])], 'MAXLEN', '~', '10000', ARGV[a + 1],
    'event', ARGV[a + 2], 'type', ARGV[a + 3], 'payload', ARGV[a + 4], 'prev', ARGV[a + 5])
  redis.call('PUBLISH', ARGV[a + 6], ARGV[a + 8])
  redis.call('PUBLISH', ARGV[a + 7], ARGV[a + 4])
end";

/// The time that the loop took, and the time that Redis computed.
pub(crate) struct Floor {
    pub(crate) took: Duration,
    pub(crate) redis: Duration,
}

impl Floor {
    /// Events a second, of this many.
    pub(crate) fn rate(&self, events: usize) -> f64 {
        events as f64 / self.took.as_secs_f64()
    }
}

/// Publishes `events` events of `bytes` bytes to `topics` topics of an empty Redis.
pub(crate) async fn run(events: usize, topics: usize, bytes: usize) -> Floor {
    let server = start_redis(Vec::new(), None).await;
    let pid = server.pid().expect("a pid");
    let connection = redis_settings_of(server.url().expose_secret()).connect().await.expect("a connection");
    let script = Script::new(SCRIPT);
    script.load_async(&mut connection.clone()).await.expect("a script");
    let payload = format!("\"{}\"", "x".repeat(bytes.max(2) - 2));
    let numbers: Vec<usize> = (0..events).collect();
    let calls: Vec<Cmd> =
        numbers.chunks(CHUNK).map(|numbers| call(script.get_hash(), numbers, topics, &payload)).collect();
    let cpu = || Cost::of(pid).expect("a cost").cpu;
    let (before, begun) = (cpu(), Instant::now());
    stream::iter(calls)
        .map(|call| {
            let mut connection = connection.clone();
            async move { call.query_async::<()>(&mut connection).await.expect("a call") }
        })
        .buffered(UNDER_WAY)
        .collect::<()>()
        .await;
    Floor { took: begun.elapsed(), redis: cpu() - before }
}

fn call(hash: &str, numbers: &[usize], topics: usize, payload: &str) -> Cmd {
    let keys = Keys::default();
    let of = |n: usize| Topic::new(format!("load:{}", n % topics)).expect("a topic");
    let mut call = redis::cmd("EVALSHA");
    call.arg(hash).arg(numbers.len().min(topics));
    for n in numbers.iter().take(topics) {
        call.arg(keys.history(&of(*n)));
    }
    for (i, n) in numbers.iter().enumerate() {
        let (topic, id) = (of(*n), StreamId::new(1, *n as u64 + 1));
        let prev =
            n.checked_sub(topics).map_or_else(String::new, |n| StreamId::new(1, n as u64 + 1).to_string());
        let event = Uuid::from_u128(*n as u128);
        let envelope = format!(
            "{{\"id\":\"{id}\",\"prev\":\"{prev}\",\"event\":\"{event}\",\"type\":\"LOAD\",\
             \"at\":1762857000123,\"payload\":{payload}}}"
        );
        call.arg(i % topics + 1)
            .arg(id.to_string())
            .arg(event.to_string())
            .arg("LOAD")
            .arg(payload)
            .arg(prev)
            .arg(keys.live(&topic))
            .arg(keys.public(&topic))
            .arg(envelope);
    }
    call
}
