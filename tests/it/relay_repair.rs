//! A Redis that forgot is given again what the log has; a Postgres that went back is never guessed around.

use crate::harness::{Line, eventually};

#[tokio::test]
async fn a_redis_that_forgot_everything_is_given_everything_again_under_the_same_ids() {
    let mut line = Line::new().await;
    let other = line.system.redis.topic("other");
    let others = line.append_to(&other, 300).await;
    line.append(700).await;
    line.is_whole().await;
    let ids = ids_of(&line).await;
    line.command("flushall").await.expect("a flush");
    // Nothing new is committed: the relay looks by itself.
    eventually("a repair", async || {
        (line.metric("aftercommit_relay_repairs_total").await == 1).then_some(())
    })
    .await;
    line.is_whole().await;
    assert_eq!(ids_of(&line).await, ids);
    assert_eq!(line.history_of(&other).await, others);
    assert_eq!(line.metric("aftercommit_relay_restored_total").await, 1000);
    assert!(line.relay.log().contains("Redis has forgotten"), "{}", line.relay.log());
    line.append(1).await;
    line.is_whole().await;
}

async fn ids_of(line: &Line) -> Vec<String> {
    let reply: redis::streams::StreamRangeReply = redis::AsyncCommands::xrange_all(
        &mut line.redis().await,
        aftercommit::redis::keys::history(&line.topic),
    )
    .await
    .expect("a history");
    reply.ids.into_iter().map(|entry| entry.id).collect()
}
