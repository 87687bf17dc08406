//! How the orderer logs: `FABRIC_LOGGING_SPEC`, `FABRIC_LOGGING_FORMAT` and `Quorate.Log.Format`.

use std::collections::BTreeMap;

use quorate_runtime::Metrics;
use quorate_runtime::telemetry::{self, FabricFormat, Layout, Level, LogSpec};

use super::{LogFormat, Options, OptionsError};

/// The variable with the levels.
pub const LOGGING_SPEC_VARIABLE: &str = "FABRIC_LOGGING_SPEC";

/// The variable with the layout of a line, or `json`.
pub const LOGGING_FORMAT_VARIABLE: &str = "FABRIC_LOGGING_FORMAT";

/// What to hand to [`telemetry::init`]: everything goes to standard error, in Fabric's layout unless something else is
/// asked for, and is counted in `metrics`. `options` is `None` while there is none, so that the reason can be logged.
///
/// # Errors
/// A variable cannot be understood; the text is Fabric's and names the variable.
pub fn logging(
    options: Option<&Options>,
    environment: &BTreeMap<String, String>,
    metrics: &Metrics,
) -> Result<telemetry::Options, OptionsError> {
    let variable = |name: &str| {
        environment
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    };
    let unusable = |name: &str, error: &dyn std::fmt::Display| OptionsError::Unusable {
        problem: format!("{error}; correct or unset {name}"),
    };
    let spec = match variable(LOGGING_SPEC_VARIABLE) {
        None => LogSpec::default(),
        Some(text) => {
            LogSpec::fabric(text).map_err(|error| unusable(LOGGING_SPEC_VARIABLE, &error))?
        }
    };
    let json = options.is_some_and(|options| options.quorate.log_format == LogFormat::Json);
    let layout = match variable(LOGGING_FORMAT_VARIABLE) {
        _ if json => Layout::Json,
        Some("json") => Layout::Json,
        Some("logfmt") => {
            return Err(unusable(
                LOGGING_FORMAT_VARIABLE,
                &"the log format logfmt is not supported, only json and layouts",
            ));
        }
        Some(text) => Layout::Fabric(
            text.parse()
                .map_err(|error| unusable(LOGGING_FORMAT_VARIABLE, &error))?,
        ),
        None => Layout::Fabric(FabricFormat::default()),
    };
    Ok(telemetry::Options {
        spec,
        // The specification alone decides.
        console: Some(Level::Trace),
        file: None,
        layout,
        metrics: Some(metrics.clone()),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;

    #[test]
    fn the_variables_and_the_section_decide() {
        let with = |variables: &[(&str, &str)], options: Option<&Options>| {
            let environment = variables
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect();
            logging(options, &environment, &Metrics::new())
        };
        let plain = with(&[], None).unwrap();
        assert_eq!(plain.spec.to_string(), "info");
        assert!(
            matches!(plain.layout, Layout::Fabric(layout) if layout == FabricFormat::default())
        );
        let spec = "orderer.consensus.etcdraft=debug:info";
        let set = with(
            &[
                (LOGGING_SPEC_VARIABLE, spec),
                (LOGGING_FORMAT_VARIABLE, "json"),
            ],
            None,
        )
        .unwrap();
        assert_eq!(set.spec.to_string(), spec);
        assert!(matches!(set.layout, Layout::Json));
        let mut options = Options::default();
        options.quorate.log_format = LogFormat::Json;
        let section = with(&[(LOGGING_FORMAT_VARIABLE, "%{message}")], Some(&options)).unwrap();
        assert!(matches!(section.layout, Layout::Json));
        let error = with(&[(LOGGING_SPEC_VARIABLE, "a=loud")], None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid logging specification 'a=loud': bad segment 'a=loud'; correct or unset FABRIC_LOGGING_SPEC"
        );
        assert!(with(&[(LOGGING_FORMAT_VARIABLE, "%{pid}")], None).is_err());
    }
}
