//! Warnings about certificates that will expire.

use std::time::Duration;

use quorate_identity::mutual_tls::CertificateFacts;

use crate::listener::go_duration;

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
    use quorate_identity::UnixTime;

    use super::*;

    #[test]
    fn it_warns_a_week_ahead_and_not_too_often() {
        const WEEK: i64 = 7 * 24 * 3600;
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
