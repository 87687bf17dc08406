//! Warnings about certificates that will expire: those of the peers ([`ExpiryWatch`]) and our own ([`track_expiry`]).

use std::time::Duration;

use quorate_identity::UnixTime;
use quorate_identity::mutual_tls::CertificateFacts;
use quorate_runtime::{Clock, Tasks};
use time::OffsetDateTime;

use crate::listener::go_duration;

const LOG: &str = "orderer.common.server";
const HOUR: i64 = 60 * 60;
const DAY: i64 = 24 * HOUR;
const WEEK: i64 = 7 * DAY;

/// Says in the log until when a certificate of our own counts, and warns a week before its end. `role` is Fabric's word
/// for it: `enrollment`, `server TLS` or `client TLS`.
pub fn track_expiry(role: &'static str, not_after: UnixTime, clock: &Clock, tasks: &Tasks) {
    let left = not_after.0.saturating_sub(clock.now_seconds());
    let (said, warned) = notices(role, not_after.0, left);
    if let Some(said) = said {
        tracing::info!(target: LOG, "{said}");
    }
    if let Some(warned) = warned {
        tracing::warn!(target: LOG, "{warned}");
        return;
    }
    let (clock, shutdown) = (clock.clone(), tasks.shutdown().clone());
    tasks.spawn(format!("expiry of the {role} certificate"), async move {
        loop {
            let left = not_after.0.saturating_sub(clock.now_seconds());
            if left <= WEEK {
                tracing::warn!(target: LOG, "The {role} certificate will expire within one week");
                return;
            }
            // In steps, because clocks are put right now and then.
            let pause = u64::try_from(left.saturating_sub(WEEK).min(DAY)).unwrap_or(0);
            tokio::select! {
                () = shutdown.requested() => return,
                () = clock.sleep(Duration::from_secs(pause)) => {}
            }
        }
    });
}

/// What is to be said, and what is to be warned of, when `left` seconds are left.
fn notices(role: &str, not_after: i64, left: i64) -> (Option<String>, Option<String>) {
    if left < 0 {
        return (None, Some(format!("The {role} certificate has expired")));
    }
    let said = OffsetDateTime::from_unix_timestamp(not_after)
        .ok()
        .map(|end| {
            let (date, time) = (end.date(), end.time());
            format!(
                "The {role} certificate will expire on {date} {:02}:{:02}:{:02} +0000 UTC",
                time.hour(),
                time.minute(),
                time.second()
            )
        });
    let warned = (left < WEEK).then(|| {
        format!(
            "The {role} certificate expires within {} days and {} hours",
            left / DAY,
            left % DAY / HOUR
        )
    });
    (said, warned)
}

/// The shortest pause between two warnings about the same stream's certificate.
const PAUSE_SECONDS: i64 = 300;

/// Watches the certificate behind one stream.
pub(super) struct ExpiryWatch {
    common_name: String,
    not_after: i64,
    threshold: i64,
    endpoint: String,
    last_warning: Option<i64>,
}

impl ExpiryWatch {
    /// Warns from `threshold` before the end of the certificate's validity.
    pub(super) fn new(facts: &CertificateFacts, endpoint: String, threshold: Duration) -> Self {
        Self {
            common_name: facts.common_name.clone(),
            not_after: facts.not_after.0,
            threshold: i64::try_from(threshold.as_secs()).unwrap_or(i64::MAX),
            endpoint,
            last_warning: None,
        }
    }

    /// The warning that is due at `now` (seconds since the epoch), if one is.
    pub(super) fn check(&mut self, now: i64, channel: &str) -> Option<String> {
        let left = self.not_after.saturating_sub(now);
        let warned = self
            .last_warning
            .is_some_and(|last| now.saturating_sub(last) < PAUSE_SECONDS);
        if left > self.threshold || warned {
            return None;
        }
        self.last_warning = Some(now);
        let sign = if left < 0 { "-" } else { "" };
        Some(format!(
            "Certificate of {} from {} for channel {channel} expires in less than {sign}{}",
            self.common_name,
            self.endpoint,
            go_duration(Duration::from_secs(left.unsigned_abs()))
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_certificates_are_told_of_in_fabrics_words() {
        let end = 1_910_610_480;
        let said = "The server TLS certificate will expire on 2030-07-18 13:08:00 +0000 UTC";
        let told = |left| notices("server TLS", end, left);
        assert_eq!(told(WEEK), (Some(said.to_owned()), None));
        assert_eq!(
            told(2 * DAY + 12 * HOUR + 59),
            (
                Some(said.to_owned()),
                Some("The server TLS certificate expires within 2 days and 12 hours".to_owned())
            )
        );
        assert_eq!(
            told(-1),
            (
                None,
                Some("The server TLS certificate has expired".to_owned())
            )
        );
    }

    #[tokio::test]
    async fn the_week_before_the_end_is_waited_for() {
        let tasks = Tasks::new("test");
        let (clock, hands) = Clock::manual(0);
        track_expiry("enrollment", UnixTime(WEEK + 10 * DAY), &clock, &tasks);
        assert_eq!(tasks.running().len(), 1);
        hands.set_wall_micros(10 * DAY * 1_000_000);
        hands.advance(Duration::from_secs(DAY.unsigned_abs()));
        while !tasks.running().is_empty() {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn it_warns_a_week_ahead_and_not_too_often() {
        let facts = CertificateFacts {
            public_key: Vec::new(),
            common_name: "orderer1".to_owned(),
            not_after: UnixTime(10 * WEEK),
        };
        let mut watch = ExpiryWatch::new(
            &facts,
            "127.0.0.1:7050".to_owned(),
            Duration::from_secs(WEEK.unsigned_abs()),
        );
        assert_eq!(watch.check(9 * WEEK - 1, "c"), None);
        assert_eq!(
            watch.check(9 * WEEK, "c").as_deref(),
            Some(
                "Certificate of orderer1 from 127.0.0.1:7050 for channel c expires in less than 168h0m0s"
            )
        );
        assert_eq!(watch.check(9 * WEEK + 299, "c"), None);
        assert!(watch.check(9 * WEEK + 300, "c").is_some());
        assert_eq!(
            watch.check(10 * WEEK + 5, "d").as_deref(),
            Some(
                "Certificate of orderer1 from 127.0.0.1:7050 for channel d expires in less than -5s"
            )
        );
    }
}
