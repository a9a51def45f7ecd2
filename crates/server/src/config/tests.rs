//! Settings by every way, and what is said about bad ones.

use std::sync::atomic::{AtomicU32, Ordering};

use super::keys::Kind;
use super::*;

const TOKEN: &str = "0123456789abcdef-canary";

/// A file of a test's own, gone when the test is.
struct File(PathBuf);

impl File {
    fn new(text: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("unanimity-config-{}-{number}.toml", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn pairs(given: &[(&str, &str)]) -> Vec<(String, String)> {
    given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn load(file: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, String> {
    let file = File::new(file);
    let loaded = Config::load(Some(&file.0), pairs(env).into_iter(), pairs(flags));
    loaded.map_err(|error| error.to_string().replace(&file.0.display().to_string(), "FILE"))
}

fn refused(file: &str, env: &[(&str, &str)], flags: &[(&str, &str)], expected: &str) {
    let found = load(file, env, flags).map(|_| ()).unwrap_err();
    assert!(found.contains(expected), "{found:?} does not say {expected:?}");
    assert!(!found.contains("canary"), "{found:?}");
}

/// Another value than the default, as text and as TOML.
fn another(key: &Key) -> (String, String) {
    let text = |text: &str| (text.to_owned(), format!("{text:?}"));
    match key.kind {
        Kind::Number(least, _, field) => {
            let default = *field(&mut Config::default());
            let number = if default > least { default - 1 } else { least + 9 };
            (number.to_string(), number.to_string())
        }
        Kind::Address(_) => text("127.0.0.9:9"),
        Kind::Text(_) => text("debug"),
        Kind::Folder(_) => text("/tmp/elsewhere"),
        Kind::Secret(_) => text(TOKEN),
        Kind::File(_) => text(File::new("").0.to_str().unwrap()),
        Kind::List(_) => ("private, accounts:80".into(), r#"["private", "accounts:80"]"#.into()),
        Kind::Format(_) => text("json"),
    }
}

#[test]
fn every_setting_can_be_said_in_all_three_ways() {
    for key in KEYS {
        let (text, toml) = another(key);
        let token = matches!(key.kind, Kind::File(_)).then(|| std::fs::write(&text, TOKEN));
        let by_file = load(&format!("[{}]\n{} = {toml}", key.section, key.name), &[], &[]);
        let by_env = load("", &[(key.env().as_str(), text.as_str())], &[]);
        let by_flag = load("", &[], &[(key.flag().as_str(), text.as_str())]);
        assert_ne!(by_file.as_ref().unwrap(), &Config::default(), "{}", key.path());
        assert_eq!(by_file, by_env, "{}", key.path());
        assert_eq!(by_env, by_flag, "{}", key.path());
        if token.is_some() {
            std::fs::remove_file(&text).unwrap();
            assert!(by_flag.unwrap().security.token.unwrap().matches(TOKEN.as_bytes()));
        }
    }
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let file = "[limits]\nbranches_max = 7\nconnections_max = 7\njson_depth_max = 9\n";
    let env = [("UNANIMITY_CONNECTIONS_MAX", "8"), ("UNANIMITY_JSON_DEPTH_MAX", "10")];
    let limits = load(file, &env, &[("json-depth-max", "11")]).unwrap().limits;
    assert_eq!((limits.branches_max, limits.connections_max, limits.json_depth_max), (7, 8, 11));
    assert_eq!(limits.body_bytes_max, Limits::default().body_bytes_max);
    let config = load("[participants]\nallow = ['public']", &[], &[("participants-allow", "")]);
    assert_eq!(config.unwrap().participants.allow, Vec::<String>::new());
}

#[test]
fn a_token_may_be_said_again_where_it_wins() {
    let file = format!("[security]\ntoken = '{TOKEN}'\n");
    let other = "another-token-of-length";
    let config = load(&file, &[("UNANIMITY_TOKEN", other)], &[]).unwrap();
    assert!(config.security.token.unwrap().matches(other.as_bytes()));
    let token_file = File::new(&format!("{other}\n"));
    let path = token_file.0.to_str().unwrap();
    let config = load(&file, &[], &[("token-file", path)]).unwrap();
    assert!(config.security.token.unwrap().matches(other.as_bytes()));
    refused(&format!("{file}token_file = 'x'"), &[], &[], "keep one of them");
    refused("", &[("UNANIMITY_TOKEN_FILE", "/nowhere")], &[], "cannot be read");
}

#[test]
fn unknown_names_are_errors_that_name_the_nearest_known() {
    refused(
        "[timeouts]\nprepare_timout_ms = 1",
        &[],
        &[],
        "FILE: timeouts.prepare_timout_ms: there is no such setting; did you mean \
        timeouts.prepare_timeout_ms?",
    );
    refused(
        "[limits]\nprepare_timeout_ms = 1",
        &[],
        &[],
        "it is prepare_timeout_ms in section [timeouts]",
    );
    refused("[data]\ndata_folder = 'x'", &[], &[], "it is folder in section [data]");
    refused("[timeout]\n", &[], &[], "did you mean timeouts?");
    refused("shards = 1", &[], &[], "FILE: shards: there is no such setting");
    refused("listen = 1", &[], &[], "is a section: write [listen]");
    refused(
        "",
        &[("UNANIMITY_DATA_FOLDERS", "x")],
        &[],
        "UNANIMITY_DATA_FOLDERS: there is no such setting; did you mean UNANIMITY_DATA_FOLDER?",
    );
    refused("", &[], &[("prepare-timeout", "1")], "did you mean prepare-timeout-ms?");
    let others = [("UNANIMITY_CONFIG", "x"), ("UNANIMITYX", "x"), ("PATH", "/bin")];
    assert_eq!(load("", &others, &[]).unwrap(), Config::default());
}

#[test]
fn values_are_checked() {
    refused(
        "[timeouts]\nprepare_timeout_ms = '5s'",
        &[],
        &[],
        r#"must be a whole number from 1 to 2592000000, and is "5s" (string)"#,
    );
    refused("[timeouts]\nprepare_timeout_ms = -5", &[], &[], "and is -5 (integer)");
    refused("[timeouts]\nprepare_timeout_ms = 0", &[], &[], "from 1 to");
    refused("[timeouts]\nprepare_timeout_ms = 5.0", &[], &[], "float");
    refused(
        "",
        &[("UNANIMITY_PREPARE_TIMEOUT_MS", "5s")],
        &[],
        "UNANIMITY_PREPARE_TIMEOUT_MS: must be a whole number",
    );
    refused("", &[("UNANIMITY_PREPARE_TIMEOUT_MS", "")], &[], "must be a whole number");
    refused("", &[], &[("shards", "+1")], "must be a whole number from 1 to 64");
    refused("", &[], &[("shards", "99999999999999999999")], "must be a whole number");
    refused("", &[], &[("branches-max", "257")], "from 1 to 256");
    refused("[participants]\nallow = 'loopback'", &[], &[], "must be a list of texts");
    refused("[participants]\nallow = [1]", &[], &[], "must be a list of texts");
    refused("[participants]\nallow = ['10.0.0.1/8']", &[], &[], "write 10.0.0.0/8");
    refused("", &[], &[("listen-address", "7171")], "an address and port such as");
    refused("", &[], &[("log-format", "xml")], r#"must be text or json, and is "xml""#);
    refused("", &[], &[("data-folder", "")], "the path of a folder");
    refused("", &[], &[("retry-delay-ms", "20000")], "retry.retry_delay_max_ms = 10000");
    refused("", &[("UNANIMITY_TOKEN", "canary")], &[], "fewer than 16 characters");
    refused("", &[("UNANIMITY_TOKEN", "canary canary canary")], &[], "visible ASCII");
    refused("[security]\ntoken = ['canary-canary-canary']", &[], &[], "must be a text");
    refused("[security]\ntoken = canary", &[], &[], "FILE, line 2, column 9: is not TOML");
}

#[test]
fn an_address_that_others_can_reach_needs_a_token() {
    for address in ["0.0.0.0:7171", "[::]:7171", "10.0.0.1:80", "[::ffff:10.0.0.1]:80"] {
        refused("", &[], &[("listen-address", address)], "no token is set");
        let with = [("listen-address", address), ("token", TOKEN)];
        assert_eq!(load("", &[], &with).unwrap().listen.address, address.parse().unwrap());
    }
    for address in ["127.0.0.1:0", "[::1]:80", "localhost:80", "[::ffff:127.0.0.1]:80"] {
        assert!(load("", &[], &[("listen-address", address)]).is_ok(), "{address}");
    }
}

#[test]
fn the_example_says_the_defaults() {
    let example = Config::example();
    assert_eq!(load(&example, &[], &[]).unwrap(), Config::default());
    for key in KEYS {
        assert!(example.contains(&format!("{} =", key.name)), "{}", key.path());
    }
}

#[test]
fn names_are_unique_and_flags_are_shown_with_their_defaults() {
    let mut words: Vec<_> = KEYS.iter().map(|key| key.word).collect();
    words.sort_unstable();
    words.dedup();
    assert_eq!(words.len(), KEYS.len());
    let mut command = clap::Command::new("serve").args(flags());
    command.clone().debug_assert();
    let help = command.render_long_help().to_string();
    for key in KEYS {
        assert!(help.contains(&format!("--{}", key.flag())), "{}", key.path());
        assert!(help.contains(&key.env()), "{}", key.path());
    }
    assert!(help.contains("[default: 5000]"));
    let arguments = ["serve", "--shards", "3", "--timeout-ms", "-1"];
    let matches = command.try_get_matches_from(arguments).unwrap();
    assert_eq!(given(&matches), pairs(&[("timeout-ms", "-1"), ("shards", "3")]));
}

#[test]
fn a_secret_is_not_shown() {
    let config = load("", &[("UNANIMITY_TOKEN", TOKEN)], &[]).unwrap();
    assert!(!format!("{config:?}").contains("canary"));
    let secret = Secret::new(TOKEN);
    assert!(secret.matches(TOKEN.as_bytes()));
    for wrong in ["", "0", "0123456789abcdef-canarx", "0123456789abcdef-canary0"] {
        assert!(!secret.matches(wrong.as_bytes()), "{wrong}");
    }
    assert!(!secret.matches(TOKEN.repeat(2).as_bytes()));
}
