//! Finds out cheaply whether a look for new events can find anything.

use super::idle::LastLook;
use super::step::{Step, StepError, within_timeout};
use crate::log::read;

impl Step {
    /// Whether a look can find something. False if the last look found nothing and no transaction has ended
    /// since then. A look sees only rows in Postgres, and two snapshots that are alike see the same rows. The
    /// question costs a small part of a look.
    ///
    /// # Errors
    /// Fails as [`Step::step`] does if Postgres fails.
    pub(super) async fn has_news(&mut self) -> Result<bool, StepError> {
        let LastLook::Idle(before) = std::mem::take(&mut self.last_look) else {
            self.last_look = LastLook::Begun(None);
            return Ok(true);
        };
        let now = within_timeout(self.rules.timeout, read::snapshot(&mut self.writer)).await?;
        let has_news = before.as_ref() != Some(&now);
        self.last_look = if has_news { LastLook::Begun(Some(now)) } else { LastLook::Idle(before) };
        Ok(has_news)
    }

    /// Notes that the look after [`Step::has_news`] found nothing, and that nothing is left to do.
    pub(super) fn found_nothing(&mut self) {
        self.last_look = match std::mem::take(&mut self.last_look) {
            LastLook::Begun(snapshot) | LastLook::Idle(snapshot) => LastLook::Idle(snapshot),
            LastLook::Found => LastLook::Idle(None),
        };
    }

    /// Makes the next look come without asking for a snapshot first: a notification has announced an event.
    pub(super) fn expect_news(&mut self) {
        self.last_look = LastLook::Found;
    }
}
