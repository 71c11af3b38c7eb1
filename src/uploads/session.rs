//! The rules of an upload session: which changes are allowed, and the state after them. Pure: no I/O and no
//! clock.

use serde::Serialize;
use uuid::Uuid;

/// The longest reason for a failure, in characters.
pub(super) const REASON_LEN_MAX: usize = 500;
/// The longest file name, in characters.
pub(super) const FILE_NAME_LEN_MAX: usize = 255;

/// A session's counts. They are derived from the rows of its photos and stored with them under one lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Session {
    pub(super) id: Uuid,
    pub(super) user_id: Uuid,
    pub(super) total: u32,
    pub(super) uploaded: u32,
    pub(super) failed: u32,
}

/// The status of a photo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum PhotoStatus {
    Pending,
    Uploaded,
    Failed,
}

impl PhotoStatus {
    /// The word that the database stores.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Uploaded => "UPLOADED",
            Self::Failed => "FAILED",
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        [Self::Pending, Self::Uploaded, Self::Failed].into_iter().find(|status| status.as_str() == text)
    }
}

/// The status of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum SessionStatus {
    InProgress,
    Completed,
}

/// The decision of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// The photo has this status already: nothing changes, and no event is sent.
    Nothing,
    /// The photo is settled. Holds the session after that.
    Settled(Session),
}

/// A command is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Conflict {
    #[error("the photo has failed, and a failed photo cannot be completed")]
    HasFailed,
    #[error("the photo is uploaded, and an uploaded photo cannot fail")]
    IsUploaded,
}

impl Session {
    pub(super) fn status(&self) -> SessionStatus {
        if self.uploaded + self.failed == self.total {
            SessionStatus::Completed
        } else {
            SessionStatus::InProgress
        }
    }

    /// The uploaded photos in percent, to one decimal. It is 100.0 only when all are uploaded: rounding never
    /// reaches it earlier.
    pub(super) fn progress_percent(&self) -> f64 {
        const ALMOST: f64 = 99.9;
        let rounded = (f64::from(self.uploaded) * 1000.0 / f64::from(self.total.max(1))).round() / 10.0;
        if self.uploaded < self.total { rounded.min(ALMOST) } else { rounded }
    }

    /// Reports a photo as uploaded. `photo` is its status before.
    pub(super) fn complete(self, photo: PhotoStatus) -> Result<Decision, Conflict> {
        match photo {
            PhotoStatus::Pending => Ok(Decision::Settled(Self { uploaded: self.uploaded + 1, ..self })),
            PhotoStatus::Uploaded => Ok(Decision::Nothing),
            PhotoStatus::Failed => Err(Conflict::HasFailed),
        }
    }

    /// Reports a photo as failed. `photo` is its status before.
    pub(super) fn fail(self, photo: PhotoStatus) -> Result<Decision, Conflict> {
        match photo {
            PhotoStatus::Pending => Ok(Decision::Settled(Self { failed: self.failed + 1, ..self })),
            PhotoStatus::Failed => Ok(Decision::Nothing),
            PhotoStatus::Uploaded => Err(Conflict::IsUploaded),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(total: u32, uploaded: u32, failed: u32) -> Session {
        Session { id: Uuid::nil(), user_id: Uuid::nil(), total, uploaded, failed }
    }

    #[test]
    fn a_pending_photo_counts_once_as_what_it_becomes() {
        let begun = session(3, 1, 0);
        assert_eq!(begun.complete(PhotoStatus::Pending), Ok(Decision::Settled(session(3, 2, 0))));
        assert_eq!(begun.fail(PhotoStatus::Pending), Ok(Decision::Settled(session(3, 1, 1))));
    }

    #[test]
    fn a_repeat_changes_nothing() {
        let begun = session(3, 1, 1);
        assert_eq!(begun.complete(PhotoStatus::Uploaded), Ok(Decision::Nothing));
        assert_eq!(begun.fail(PhotoStatus::Failed), Ok(Decision::Nothing));
    }

    #[test]
    fn what_is_settled_stays_so() {
        let begun = session(3, 1, 1);
        assert_eq!(begun.complete(PhotoStatus::Failed), Err(Conflict::HasFailed));
        assert_eq!(begun.fail(PhotoStatus::Uploaded), Err(Conflict::IsUploaded));
    }

    #[test]
    fn a_session_is_completed_when_every_photo_is_settled() {
        assert_eq!(session(2, 1, 0).status(), SessionStatus::InProgress);
        assert_eq!(session(2, 1, 1).status(), SessionStatus::Completed);
        assert_eq!(session(2, 0, 2).status(), SessionStatus::Completed);
    }

    #[test]
    fn progress_is_what_is_uploaded_to_one_decimal() {
        assert_eq!(session(100, 47, 0).progress_percent(), 47.0);
        assert_eq!(session(3, 1, 0).progress_percent(), 33.3);
        assert_eq!(session(3, 2, 1).progress_percent(), 66.7);
        assert_eq!(session(10_000, 1, 0).progress_percent(), 0.0);
        assert_eq!(session(7, 7, 0).progress_percent(), 100.0);
        for almost in 9_995..10_000 {
            assert_eq!(session(10_000, almost, 0).progress_percent(), 99.9);
        }
        assert_eq!(session(10_000, 9_999, 1).progress_percent(), 99.9, "one has failed");
        assert_eq!(session(10_000, 10_000, 0).progress_percent(), 100.0);
    }
}
