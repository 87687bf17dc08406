use super::*;
use proptest::prelude::*;
use quorate_storage::DatabaseUrl;

const BASE: &str = "/opt/quorate/PartyB";

fn options(environment: &[(&str, &str)]) -> LoadOptions {
    LoadOptions {
        environment: environment.iter().copied().collect(),
        machine_name: Some("host-1".to_owned()),
        ..LoadOptions::default()
    }
}

fn read(text: &str, environment: &[(&str, &str)]) -> Result<NodeConfiguration, ConfigurationError> {
    NodeConfiguration::parse(text, "node.conf", Path::new(BASE), &options(environment))
}

#[track_caller]
fn accepted(text: &str) -> NodeConfiguration {
    read(text, &[]).unwrap_or_else(|error| panic!("{text}\n=> {error}"))
}

fn shown(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

fn problems(text: &str) -> Vec<String> {
    match read(text, &[]) {
        Err(ConfigurationError::Invalid(Problems(problems))) => shown(&problems),
        other => panic!("{text}\n=> {other:?}"),
    }
}

/// The smallest file, and then some.
fn with(more: &str) -> String {
    format!(
        "myLegalName = \"O=PartyA, L=London, C=GB\", devMode = true, p2pAddress = \"localhost:10002\"\n\
         rpcSettings.address = \"localhost:10003\"\n{more}"
    )
}

/// The only problem with these lines is at this key and says this.
#[track_caller]
fn refused(more: &str, key: &str, words: &str) {
    let problems = problems(&with(more));
    assert_eq!(problems.len(), 1, "{more}\n=> {problems:#?}");
    assert!(
        problems[0].contains(&format!("`{key}`: ")) && problems[0].contains(words),
        "{more}\n=> {problems:#?}"
    );
}

/// The hot-cold deployment guide's file, with a database that we have.
const GUIDE: &str = r#"
p2pAddress : "${LOAD_BALANCER_ADDRESS}:${P2P_PORT}"
rpcSettings {
    address : "${NODE_MACHINE_ADDRESS}:${RPC_PORT}"
    adminAddress : "${NODE_MACHINE_ADDRESS}:${RPC_ADMIN_PORT}"
}
myLegalName : "O=Corda HA, L=London, C=GB"
keyStorePassword : "password"
trustStorePassword : "password"
rpcUsers=[
    {
        user=corda
        password=corda_is_awesome
        permissions=[
            ALL
        ]
    }
]
database.runMigration = true
dataSourceProperties = {
    dataSourceClassName = "org.postgresql.ds.PGSimpleDataSource"
    dataSource.url = "${DB_JDBC_URL}"
    dataSource.user = ${DB_USER}
    dataSource.password = "${DB_PASSWORD}"
}
enterpriseConfiguration = {
    mutualExclusionConfiguration = {
        on = true
        machineName = ${UNIQUE_ID} // Optional
        updateInterval = 20000
        waitInterval = 40000
    }
}
"#;

const GUIDE_VARIABLES: &[(&str, &str)] = &[
    ("LOAD_BALANCER_ADDRESS", "lb.example.com"),
    ("P2P_PORT", "10002"),
    ("NODE_MACHINE_ADDRESS", "10.0.0.4"),
    ("RPC_PORT", "10003"),
    ("RPC_ADMIN_PORT", "10004"),
    ("DB_JDBC_URL", "jdbc:postgresql://db.example.com:5432/corda"),
    ("DB_USER", "corda_user"),
    ("DB_PASSWORD", "db_s3cret"),
    ("UNIQUE_ID", "vm-a"),
];

#[test]
fn the_deployment_guides_file_is_accepted() {
    let config = read(GUIDE, GUIDE_VARIABLES).unwrap();
    assert_eq!(
        config.my_legal_name.to_string(),
        "O=Corda HA, L=London, C=GB"
    );
    assert_eq!(
        config.advertised_addresses[0].to_string(),
        "lb.example.com:10002"
    );
    assert_eq!(config.p2p_listen.to_string(), "0.0.0.0:10002");
    assert_eq!(config.rpc.address.to_string(), "10.0.0.4:10003");
    assert_eq!(
        config.rpc.admin_address.as_ref().unwrap().to_string(),
        "10.0.0.4:10004"
    );
    assert_eq!(config.rpc_users[0].username, "corda");
    assert_eq!(config.rpc_users[0].permissions, ["ALL"]);
    assert_eq!(
        (
            config.key_store_password.expose(),
            config.trust_store_password.expose()
        ),
        ("password", "password")
    );
    assert!(!config.dev_mode && config.database.run_migration);
    assert_eq!(
        config.database.url.to_string(),
        "postgres://db.example.com:5432/corda"
    );
    assert_eq!(config.database.user.as_deref(), Some("corda_user"));
    assert_eq!(
        config.database.password.as_ref().unwrap().expose(),
        "db_s3cret"
    );
    let exclusion = &config.mutual_exclusion;
    assert!(exclusion.on && exclusion.machine_name == "vm-a");
    assert_eq!(exclusion.update_interval, Duration::from_secs(20));
    assert_eq!(exclusion.wait_interval, Duration::from_secs(40));
    assert_eq!(exclusion.when_held, WhenHeld::Wait);
    assert_eq!(shown(&config.findings.warnings), [""; 0]);

    // Shown to a person or in a log, it keeps its secrets.
    for text in [config.describe(), format!("{config:?}")] {
        for secret in ["corda_is_awesome", "db_s3cret", "\"password\""] {
            assert!(!text.contains(secret), "{text}");
        }
    }
    assert!(
        config
            .describe()
            .contains("rpcUsers[0].password = ********  # node.conf:13:18\n"),
        "{}",
        config.describe()
    );
}

#[test]
fn the_deployment_guides_own_database_is_refused_by_name() {
    let text = GUIDE.replace(
        "org.postgresql.ds.PGSimpleDataSource",
        "com.microsoft.sqlserver.jdbc.SQLServerDataSource",
    );
    let mut variables = GUIDE_VARIABLES.to_vec();
    variables.push(("DB_JDBC_URL", "jdbc:sqlserver://db:1433;databaseName=x"));
    let error = read(&text, &variables).unwrap_err().to_string();
    assert_eq!(
        error
            .matches("Microsoft SQL Server is not supported; use PostgreSQL")
            .count(),
        2,
        "{error}"
    );
    assert!(error.contains("node.conf:21:27: "), "{error}");
}

#[test]
fn a_missing_variable_of_the_guides_file_is_named_with_its_place() {
    let error = read(GUIDE, &GUIDE_VARIABLES[..7]).unwrap_err().to_string();
    assert!(
        error.contains("node.conf:24:") && error.contains("`DB_PASSWORD` is not set"),
        "{error}"
    );
}

/// The walk-through's file, as its build tool made it, down to the key that follows a brace on the same line.
const WALKTHROUGH: &str = r#"dataSourceProperties {

dataSource {
password=pg_s3cret
url="jdbc:postgresql://ce4-pgsql.example.ap-northeast-1.rds.amazonaws.com:5432/PartyB_HA2"
user=postgres
}
dataSourceClassName="org.postgresql.ds.PGSimpleDataSource"
}
database {
runMigration="true"
schema="my_schema"
transactionIsolationLevel="READ_COMMITTED"
}
devMode=true
jarDirs=[
"/home/ubuntu/jars/"
]
myLegalName="O=PartyB,L=Osaka,C=JP"
p2pAddress="internal-PartyB-HA-LB-1234567890.ap-northeast-1.elb.amazonaws.com:10008"
rpcSettings {
address="0.0.0.0:10009"
adminAddress="0.0.0.0:10049"
}security {
authService {
dataSource {
type=INMEMORY
users=[
{
password=test
permissions=[
ALL
]
user=user1
}
]
}
}
}
"#;

#[test]
fn the_walkthroughs_file_is_accepted() {
    let config = accepted(WALKTHROUGH);
    assert_eq!(config.my_legal_name.to_string(), "O=PartyB, L=Osaka, C=JP");
    assert_eq!(config.p2p_listen.to_string(), "0.0.0.0:10008");
    assert_eq!(config.rpc.address.to_string(), "0.0.0.0:10009");
    assert_eq!(config.rpc_users[0].username, "user1");
    assert_eq!(config.database.schema.as_deref(), Some("my_schema"));
    assert!(config.dev_mode && config.database.run_migration && !config.mutual_exclusion.on);
    let store = config.database.store_options();
    assert_eq!(store.password.unwrap().expose(), "pg_s3cret");
    assert_eq!(store.schema.as_deref(), Some("my_schema"));
    assert_eq!(shown(&config.findings.warnings), [""; 0]);
    let notes = shown(&config.findings.notes);
    assert!(
        notes
            .iter()
            .any(|note| note.contains("`jarDirs`: is not needed: database drivers are built in")),
        "{notes:?}"
    );

    // The same, with keys in quotes as the walk-through's build file has them.
    let quoted = with(
        "dataSourceProperties { dataSourceClassName = \"org.postgresql.ds.PGSimpleDataSource\" }\n\
         \"dataSourceProperties.dataSource.url\": \"jdbc:postgresql://db:5432/x\"\n\"database.runMigration\": \"false\"",
    );
    let config = accepted(&quoted);
    assert_eq!(config.database.url.to_string(), "postgres://db:5432/x");
    assert!(!config.database.run_migration);
}

#[test]
fn the_smallest_file_has_defaults_for_the_rest() {
    let config = accepted(&with(""));
    assert_eq!(
        config.database.url,
        DatabaseUrl::Sqlite {
            path: Path::new(BASE).join("persistence.db")
        }
    );
    assert_eq!(
        config.certificates_directory,
        Path::new(BASE).join("certificates")
    );
    assert_eq!(
        config.key_store_password.expose(),
        DEVELOPMENT_KEY_STORE_PASSWORD
    );
    assert_eq!(config.mutual_exclusion.machine_name, "host-1");
    assert_eq!(
        config.mutual_exclusion.wait_interval,
        Duration::from_secs(40)
    );
    assert_eq!(config.flow_timeout.timeout, Duration::from_secs(30));
    assert!(
        config.database.run_migration,
        "in development mode a newcomer needs no migration command"
    );
    assert!(config.notary.is_none() && config.web_address.is_none() && config.rpc_users.is_empty());
}

#[test]
fn everything_missing_is_reported_at_once() {
    let missing = problems("zzz = 1");
    for key in [
        "myLegalName",
        "p2pAddress",
        "rpcSettings.address",
        "keyStorePassword",
        "trustStorePassword",
    ] {
        assert!(
            missing
                .iter()
                .any(|problem| problem.contains(&format!("`{key}`: is missing"))),
            "{key}: {missing:#?}"
        );
    }
    assert!(
        missing
            .iter()
            .any(|problem| problem.starts_with("node.conf:1:7: `zzz`: is not a known key")),
        "{missing:#?}"
    );
}

#[test]
fn unknown_keys_name_the_nearest_one() {
    refused(
        "mylegalname = x",
        "mylegalname",
        "did you mean `myLegalName`?",
    );
    refused(
        "rpcSettings.adress = x",
        "rpcSettings.adress",
        "did you mean `address`?",
    );
    refused(
        "enterpriseConfiguration.mutualExclusionConfiguration.updateIntervall = 1",
        "enterpriseConfiguration.mutualExclusionConfiguration.updateIntervall",
        "did you mean `updateInterval`?",
    );
    let lenient = LoadOptions {
        on_unknown_keys: OnUnknownKeys::Warn,
        ..options(&[])
    };
    let config = NodeConfiguration::parse(
        &with("p2pAdress = x"),
        "node.conf",
        Path::new(BASE),
        &lenient,
    )
    .unwrap();
    assert!(
        config.findings.warnings[0]
            .to_string()
            .contains("did you mean `p2pAddress`?")
    );
}

#[test]
fn values_that_cannot_be_are_refused_with_the_way_out() {
    for (more, key, words) in [
        ("myLegalName = \"O=PartyA\"", "myLegalName", ""),
        (
            "p2pAddress = \"0.0.0.0:10002\"",
            "p2pAddress",
            "real address",
        ),
        ("p2pAddress = \"localhost\"", "p2pAddress", "host:port"),
        (
            "additionalP2PAddresses = [\"b:1\", \"b:1\"]",
            "additionalP2PAddresses",
            "twice",
        ),
        (
            "webAddress = \"localhost:10003\"",
            "webAddress",
            "`rpcSettings`",
        ),
        (
            "operations.address = \"0.0.0.0:10002\"",
            "operations",
            "`p2pAddress`",
        ),
        (
            "rpcSettings.useSsl = true",
            "rpcSettings.ssl",
            "keyStorePath",
        ),
        (
            "rpcSettings.standAloneBroker = true",
            "rpcSettings.standAloneBroker",
            "not supported",
        ),
        (
            "rpcUsers = [{ user = u, permissions = [ALL] }]",
            "rpcUsers[0].password",
            "missing",
        ),
        (
            "rpcUsers = [{ password = p }]",
            "rpcUsers[0].user",
            "missing",
        ),
        (
            "rpcUsers = [{ user = u, password = p, permissions = [FLY] }]",
            "rpcUsers",
            "'FLY'",
        ),
        (
            "rpcUsers = [{ user = u, password = p }, { username = u, password = q }]",
            "rpcUsers",
            "twice",
        ),
        (
            "security.authService.dataSource { type = DB }",
            "security.authService.dataSource.type",
            "INMEMORY",
        ),
        (
            "security.authService.dataSource { type = INMEMORY, passwordEncryption = SHIRO_1_CRYPT }",
            "security.authService.dataSource.passwordEncryption",
            "NONE",
        ),
        (
            "dataSourceProperties.dataSource.url = \"jdbc:h2:file:./x\"",
            "dataSourceProperties.dataSource.url",
            "H2",
        ),
        (
            "dataSourceProperties.dataSource.url = \"jdbc:oracle:thin:@x\"",
            "dataSourceProperties.dataSource.url",
            "Oracle",
        ),
        (
            "dataSourceProperties.dataSourceClassName = oracle.jdbc.pool.OracleDataSource",
            "dataSourceProperties.dataSourceClassName",
            "Oracle",
        ),
        (
            "dataSourceProperties.dataSource.user = u",
            "dataSourceProperties.dataSource",
            "`url` is missing",
        ),
        (
            "dataSourceProperties { dataSourceClassName = org.sqlite.SQLiteDataSource\n\
             dataSource.url = \"jdbc:postgresql://h/d\" }",
            "dataSourceProperties.dataSourceClassName",
            "agree",
        ),
        (
            "database.transactionIsolationLevel = CHAOS",
            "database.transactionIsolationLevel",
            "READ_COMMITTED",
        ),
        ("notary {}", "notary.validating", "missing"),
        (
            "notary { validating = false, raft {} }",
            "notary.raft",
            "Raft",
        ),
        (
            "notary { validating = false, jpa.dataSourceProperties.jdbcUrl = \"jdbc:postgresql://db/notary\" }",
            "notary.serviceLegalName",
            "share a database",
        ),
        (
            "notary { validating = false, mysql {} }",
            "notary.mysql",
            "MySQL",
        ),
        (
            "notary { validating = false, className = net.corda.notary.experimental.raft.RaftNotaryService }",
            "notary.className",
            "Raft",
        ),
        (
            "notary { validating = false, serviceLegalName = \"L=London, C=GB, O=PartyA\" }",
            "notary.serviceLegalName",
            "own name",
        ),
        (
            "enterpriseConfiguration.mutualExclusionConfiguration { on = true, waitInterval = 20000 }",
            "enterpriseConfiguration.mutualExclusionConfiguration.waitInterval",
            "greater than updateInterval",
        ),
        (
            "enterpriseConfiguration.mutualExclusionConfiguration.whenHeld = FIGHT",
            "enterpriseConfiguration.mutualExclusionConfiguration.whenHeld",
            "WAIT, EXIT, MANUAL",
        ),
        (
            "enterpriseConfiguration { externalBridge = true, messagingServerSslConfiguration { sslKeystore = a, keyStorePassword = p, trustStorePassword = p } }",
            "enterpriseConfiguration.messagingServerSslConfiguration.trustStoreFile",
            "name the link's trust store",
        ),
        (
            "messagingServerExternal = true",
            "messagingServerExternal",
            "not supported",
        ),
        (
            "cryptoServiceName = UTIMACO",
            "cryptoServiceName",
            "write PKCS11",
        ),
        ("crlCheckSoftFail = false", "crlCheckSoftFail", "write true"),
        (
            "flowTimeout.backoffBase = 0.5",
            "flowTimeout.backoffBase",
            "from 1 to 100",
        ),
        ("logging.level = loud", "logging.level", "log level"),
        ("keyStorePassword = \"\"", "keyStorePassword", "empty"),
    ] {
        refused(more, key, words);
    }
}

#[test]
fn keys_without_effect_are_accepted_and_warned_about() {
    let config = accepted(&with(
        "compatibilityZoneURL = \"http://10.102.32.106:8080/\", sshd { port = 2222 }, emailAddress = a, verifierType = InMemory\n\
         crlCheckSoftFail = true, tlsCertCrlDistPoint = \"http://x\", cordappSignerKeyFingerprintBlacklist = []\n\
         enterpriseConfiguration { externalBridge = false, tuning { flowThreadPoolSize = 4 } }, useTestClock = false\n\
         dataSourceProperties { dataSource.url = \"jdbc:postgresql://h/d?reWriteBatchedInserts=true\", maximumPoolSize = 9 }\n\
         flowTimeout { timeout = 10 seconds, maxRestartCount = 3, backoffBase = 2 }, h2Settings { address = \"x:1\" }",
    ));
    let warnings = shown(&config.findings.warnings);
    for key in [
        "compatibilityZoneURL",
        "sshd",
        "tlsCertCrlDistPoint",
        "dataSourceProperties.dataSource.url",
    ] {
        assert!(
            warnings
                .iter()
                .any(|warning| warning.contains(&format!("`{key}`: "))),
            "{key}: {warnings:#?}"
        );
    }
    assert_eq!(warnings.len(), 4, "{warnings:#?}");
    assert_eq!(
        config.findings.notes.len(),
        5,
        "{:#?}",
        shown(&config.findings.notes)
    );
    assert_eq!(config.database.readers, Some(9));
    assert_eq!(
        config.flow_timeout,
        FlowTimeout {
            timeout: Duration::from_secs(10),
            max_restart_count: 3,
            backoff_base: 2.0
        }
    );
}

#[test]
fn everything_configurable_arrives() {
    let config = accepted(&with(
        "additionalP2PAddresses = [\"b.example:10002\", \"[::1]:10002\"], messagingServerAddress = \"127.0.0.1:20002\"\n\
         webAddress = \"localhost:10004\", operations.address = \"localhost:9443\", certificatesDirectory = /etc/keys\n\
         rpcSettings { useSsl = true, ssl { keyStorePath = certificates/rpc.json, keyStorePassword = p } }\n\
         notary { validating = true, serviceLegalName = \"O=Notary Cluster, L=Zurich, C=CH\", jpa.maxBatchSize = 7 }\n\
         enterpriseConfiguration.mutualExclusionConfiguration { on = true, whenHeld = exit, whenLost = STANDBY\n\
         updateInterval = 500, waitInterval = 1500 ms, machineName = m }\n\
         logging { level = \"messaging=debug:info\", maxFileSize = 10 MiB, keptFiles = 2, json = true }\n\
         dataSourceProperties.dataSource.url = \"jdbc:sqlite:data/node.db\"",
    ));
    let addresses: Vec<_> = config
        .advertised_addresses
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        addresses,
        ["localhost:10002", "b.example:10002", "[::1]:10002"]
    );
    assert_eq!(config.p2p_listen.to_string(), "127.0.0.1:20002");
    assert_eq!(config.web_address.unwrap().port(), 10004);
    assert_eq!(config.operations_address.unwrap().port(), 9443);
    assert_eq!(config.certificates_directory, Path::new("/etc/keys"));
    assert_eq!(
        config.rpc.tls.unwrap().key_store_path,
        Path::new(BASE).join("certificates/rpc.json")
    );
    let notary = config.notary.unwrap();
    assert_eq!(notary.service_options().batch_size, 7);
    assert!(notary.validating && notary.service_legal_name.is_some());
    assert_eq!(
        config.mutual_exclusion,
        MutualExclusion {
            on: true,
            machine_name: "m".to_owned(),
            update_interval: Duration::from_millis(500),
            wait_interval: Duration::from_millis(1500),
            when_held: WhenHeld::Exit,
            when_lost: WhenLost::Standby,
        }
    );
    assert_eq!(config.logging.spec.to_string(), "messaging=debug:info");
    assert_eq!(
        (
            config.logging.max_file_bytes,
            config.logging.kept_files,
            config.logging.json
        ),
        (10 << 20, 2, true)
    );
    assert_eq!(
        config.database.url,
        DatabaseUrl::Sqlite {
            path: Path::new(BASE).join("data/node.db")
        }
    );
}

#[test]
fn the_environment_and_the_command_line_override_the_file() {
    let variables = [
        ("corda_rpcSettings_address", "0.0.0.0:20003"),
        ("CORDA_DATABASE_RUNMIGRATION", "false"),
        (
            "QUORATE_enterpriseConfiguration_mutualExclusionConfiguration_machineName",
            "pod-0",
        ),
        ("corda.additionalP2PAddresses", "[\"c.example:1\"]"),
        ("QUORATE_BASE_DIRECTORY", "/elsewhere"),
        ("CORDA_SERVICE_HOST", "10.0.0.1"),
    ];
    let options = LoadOptions {
        dev_mode: Some(false),
        reserved_variables: vec!["QUORATE_BASE_DIRECTORY"],
        ..options(&variables)
    };
    let text = with("keyStorePassword = a, trustStorePassword = trustpass");
    let config = NodeConfiguration::parse(&text, "node.conf", Path::new(BASE), &options).unwrap();
    assert_eq!(config.rpc.address.to_string(), "0.0.0.0:20003");
    assert!(!config.database.run_migration && !config.dev_mode);
    assert_eq!(config.mutual_exclusion.machine_name, "pod-0");
    assert_eq!(config.advertised_addresses.len(), 2);
    let warnings = shown(&config.findings.warnings);
    assert_eq!(warnings.len(), 2, "{warnings:#?}");
    assert!(
        warnings
            .iter()
            .any(|warning| warning.contains("`trustStorePassword`: is the development password"))
    );
    assert!(
        warnings
            .iter()
            .any(|warning| warning.starts_with("environment variable CORDA_SERVICE_HOST: "))
    );
}

#[test]
fn files_are_loaded_from_the_base_directory() {
    let directory = tempfile::tempdir().unwrap();
    let load = || NodeConfiguration::load(directory.path(), None, &options(&[]));
    let error = load().unwrap_err();
    assert!(
        error.to_string().ends_with("node.conf: it cannot be read"),
        "{error}"
    );
    assert!(std::error::Error::source(&error).is_some());
    std::fs::write(directory.path().join("common.conf"), "devMode = true").unwrap();
    std::fs::write(
        directory.path().join(FILE_NAME),
        with("include \"common\"\nnotary {"),
    )
    .unwrap();
    assert!(load().unwrap_err().to_string().contains("opened with `{`"));
    std::fs::write(
        directory.path().join(FILE_NAME),
        with("include \"common\"\nbad = 1"),
    )
    .unwrap();
    let found = NodeConfiguration::validate(directory.path(), None, &options(&[])).unwrap();
    assert_eq!(found.len(), 1);
    std::fs::write(directory.path().join(FILE_NAME), with("include \"common\"")).unwrap();
    assert_eq!(
        NodeConfiguration::validate(directory.path(), None, &options(&[])).unwrap(),
        []
    );
    assert!(
        load()
            .unwrap()
            .database
            .url
            .to_string()
            .ends_with("/persistence.db")
    );
}

proptest! {
    #[test]
    fn any_damage_to_a_guides_file_is_read_or_refused_without_telling_secrets(
        at in 0usize..1000, cut in 0usize..30, insert in "[\\PC\n\"{}$=]{0,5}", which in any::<bool>()
    ) {
        let text: Vec<char> = if which { GUIDE } else { WALKTHROUGH }.chars().collect();
        let at = at.min(text.len());
        let end = (at + cut).min(text.len());
        let damaged: String = text[..at].iter().copied().chain(insert.chars()).chain(text[end..].iter().copied()).collect();
        match read(&damaged, GUIDE_VARIABLES) {
            Ok(config) => {
                let text = format!("{config:?}");
                prop_assert!(!text.contains("db_s3cret"));
            }
            Err(error) => {
                let text = format!("{error} {error:?}");
                prop_assert!(!text.contains("db_s3cret"), "{}", text);
            }
        }
    }
}

#[test]
fn obfuscated_values_are_revealed_to_who_has_the_passphrase_and_shown_to_nobody() {
    let key = ObfuscationKey::derive("seed", "passphrase");
    let lines = "keyStorePassword = \"<encrypt{a secret}>\"\n\
                 dataSourceProperties { dataSource { url = \"jdbc:postgresql://db/<encrypt{ledger}>\", user = \"<encrypt{owner}>\" } }\n";
    refused(
        "keyStorePassword = \"<encrypt{a secret}>\"",
        "keyStorePassword",
        "obfuscate-config",
    );
    let (text, count) = key.obfuscate(&with(lines)).unwrap();
    assert_eq!(count, 3);
    let read_with = |key: Option<ObfuscationKey>| {
        let options = LoadOptions {
            obfuscation: key.map(Arc::new),
            ..options(&[])
        };
        NodeConfiguration::parse(&text, "node.conf", Path::new(BASE), &options)
    };
    let configuration = read_with(Some(key)).unwrap();
    assert_eq!(configuration.key_store_password.expose(), "a secret");
    assert!(matches!(
        configuration.database.store_options().url,
        DatabaseUrl::Postgres { ref database, .. } if database == "ledger"
    ));
    let shown = configuration.describe();
    assert!(
        !shown.contains("ledger") && !shown.contains("owner"),
        "{shown}"
    );
    for (key, words) in [
        (None, "CONFIG_OBFUSCATION_PASSPHRASE"),
        (Some(ObfuscationKey::derive("seed", "other")), "passphrase"),
    ] {
        let Err(ConfigurationError::Invalid(Problems(problems))) = read_with(key) else {
            panic!("it was read");
        };
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems[0].to_string().contains(words), "{problems:?}");
    }
}

#[test]
fn recording_and_maintenance_have_their_meaning() {
    let config = accepted(&with(""));
    assert_eq!(config.events_to_record, EventsToRecord::None);
    assert!(!config.events_to_record.rpc());
    assert_eq!(config.maintenance, None);
    // The page about maintenance mode.
    let config = accepted(&with(
        "enterpriseConfiguration {\n auditService = { eventsToRecord = RPC }\n\
         maintenanceMode { schedule = \"00 30 14,15 * * 5\", duration = \"10m\", rpcAuditDataRetentionPeriod = \"100d\" }\n\
         processedMessageCleanup { generalRetentionPeriodInDays = 334, senderRetentionPeriodInDays = 445 } }",
    ));
    assert!(config.events_to_record.rpc());
    assert_eq!(shown(&config.findings.warnings), [""; 0]);
    let mode = config.maintenance.unwrap();
    assert_eq!(mode.schedule.to_string(), "00 30 14,15 * * 5");
    assert_eq!(mode.duration, Duration::from_secs(600));
    assert_eq!(mode.rpc_audit_retention.to_string(), "100d");
    let cleanup = ProcessedMessageCleanup {
        general_retention_days: Some(334),
        sender_retention_days: 445,
    };
    assert_eq!(mode.processed_messages, Some(cleanup));

    let cleanup = "enterpriseConfiguration.processedMessageCleanup.senderRetentionPeriodInDays = 7";
    let config = accepted(&with(cleanup));
    assert_eq!(config.maintenance, None);
    let warnings = shown(&config.findings.warnings);
    assert!(warnings[0].contains("maintenanceMode"), "{warnings:?}");

    const MODE: &str = "enterpriseConfiguration.maintenanceMode";
    let written = |schedule: &str, duration: &str, period: &str| {
        format!(
            "{MODE} {{ schedule = \"{schedule}\", duration = {duration}, rpcAuditDataRetentionPeriod = {period} }}"
        )
    };
    for (text, key, words) in [
        (written("0 30 14 * *", "10m", "1w"), "schedule", "6"),
        (
            written("0 0 0 30 2 *", "10m", "1w"),
            "schedule",
            "never comes",
        ),
        (
            written("0 0 0 * * *", "10 fortnights", "1w"),
            "duration",
            "unit",
        ),
        (written("0 0 0 * * *", "10ms", "1w"), "duration", "from 1s"),
        (
            written("0 0 0 * * *", "1h", "1h"),
            "rpcAuditDataRetentionPeriod",
            "100d",
        ),
    ] {
        refused(&text, &format!("{MODE}.{key}"), words);
    }
    let missing = problems(&with(&format!("{MODE} {{}}")));
    assert_eq!(missing.len(), 3, "{missing:#?}");
    assert!(missing.iter().all(|problem| problem.contains("is missing")));
    let audit = "enterpriseConfiguration.auditService.eventsToRecord";
    refused(&format!("{audit} = SOME"), audit, "NONE, RPC, ALL");
    let cleanup = "enterpriseConfiguration.processedMessageCleanup.generalRetentionPeriodInDays";
    refused(&format!("{cleanup} = -1"), cleanup, "from 1");
}
