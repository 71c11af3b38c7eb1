//! Rights on the log that nobody needs: the doctor names each, whatever table or column it is on.

use crate::grants::{Cast, ROLES};
use crate::harness::TestResult;

#[tokio::test]
async fn each_right_to_change_the_log_that_no_role_needs_is_named() -> TestResult {
    let cast = Cast::new().await;
    cast.owner(&cast.printed(&ROLES[..5]).await).await;
    assert_eq!(cast.doctor("operator").await, [""; 0]);
    for (right, object, named) in [
        ("delete", "outbox.checkpoint", "PUBLIC delete on outbox.checkpoint"),
        ("update (reason)", "outbox.pause", "PUBLIC update on outbox.pause"),
        ("update", "outbox.relay", "PUBLIC update on outbox.relay"),
        ("insert", "outbox.log", "PUBLIC insert on outbox.log"),
        ("truncate", "outbox.event", "PUBLIC truncate on outbox.event"),
        ("trigger", "outbox.event_3", "PUBLIC trigger on outbox.event_3"),
        ("update", "sequence outbox.event_id_seq", "PUBLIC update on outbox.event_id_seq"),
    ] {
        cast.owner(&format!("grant {right} on {object} to public")).await;
        let found = cast.doctor("operator").await;
        assert!(found.iter().any(|found| found.contains(named)), "{right} on {object}: {found:?}");
        cast.owner(&format!("revoke {right} on {object} from public")).await;
    }
    assert_eq!(cast.doctor("operator").await, [""; 0]);
    Ok(())
}
