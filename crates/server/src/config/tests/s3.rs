//! Promises of `[objects.s3]`.

use std::time::Duration;

use super::*;

const BUCKET: &str = "[objects]\ncold = \"s3://my-bucket/a/b/\"\n";

fn s3(text: &str) -> (S3, Vec<Problem>) {
    let loaded = load_text(text).unwrap_or_else(|error| panic!("{error}"));
    match loaded.config.objects.cold {
        Cold::S3(s3) => (*s3, loaded.warnings),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_bucket_needs_no_more_than_its_name() {
    let (read, warnings) = s3(BUCKET);
    assert_eq!((read.bucket.as_str(), read.prefix.as_str()), ("my-bucket", "a/b"));
    assert_eq!((&read.endpoint, &read.region, &read.credentials, &read.addressing), (&None, &None, &None, &None));
    assert_eq!(read.place(), "s3://my-bucket/a/b at Amazon S3");
    assert_eq!((read.retry_max, read.retry_timeout), (3, Duration::from_secs(10)));
    assert_eq!((read.connect_timeout, read.start_timeout), (Duration::from_secs(5), Duration::from_secs(30)));
    assert!(warnings.is_empty());
    assert_eq!(s3("[objects]\ncold = \"s3://abc\"\n").0.prefix, "");
}

#[test]
fn everything_of_a_bucket_is_read_and_shown_and_no_secret_is() {
    let text = format!(
        "{BUCKET}[objects.s3]\nendpoint = \"http://[::1]:9000/\"\nregion = \"eu\"\naddressing = \"virtual\"\n\
         access_key_id = \"me\"\nsecret_access_key = \"hidden-key\"\nsession_token = \"hidden-token\"\n\
         connect_timeout_ms = 1\nread_timeout_ms = 2\nretry_max = 0\nretry_timeout_ms = 3\nstart_timeout_ms = 4\n"
    );
    let (read, warnings) = s3(&text);
    assert_eq!(read.endpoint.as_deref(), Some("http://[::1]:9000"));
    assert_eq!((read.addressing, read.retry_max), (Some(Addressing::Virtual), 0));
    assert_eq!(read.read_timeout, Duration::from_millis(2));
    assert!(warnings.is_empty(), "loopback needs no TLS: {warnings:?}");
    let config = load_text(&text).unwrap().config;
    let shown = config.effective(&config.settings);
    let all = serde_json::Value::from(shown.clone()).to_string() + &format!("{config:?}");
    assert!(!all.contains("hidden"), "{all}");
    for (key, value) in [
        ("objects.cold", serde_json::json!("s3://my-bucket/a/b")),
        ("objects.s3.endpoint", "http://[::1]:9000".into()),
        ("objects.s3.region", "eu".into()),
        ("objects.s3.addressing", "virtual".into()),
        ("objects.s3.access_key_id", "me".into()),
        ("objects.s3.secret_access_key", "***".into()),
        ("objects.s3.session_token", "***".into()),
        ("objects.s3.start_timeout_ms", 4.into()),
        ("objects.s3.retry_max", 0.into()),
    ] {
        assert_eq!(shown.get(key), Some(&value), "{key}");
    }
}

#[test]
fn a_secret_may_come_out_of_the_environment() {
    let files = Files::new();
    let path = files.write("tidegate.toml", &format!("{BUCKET}[objects.s3]\naccess_key_id = \"me\"\n"));
    let env = env(&[
        ("TIDEGATE__OBJECTS__S3__SECRET_ACCESS_KEY", "hidden"),
        ("TIDEGATE__OBJECTS__S3__ALLOW_HTTP", "true"),
        ("TIDEGATE__OBJECTS__S3__ENDPOINT", "http://10.0.0.1:9000"),
    ]);
    let loaded = load(&Inputs { file: Some(&path), env, ..Inputs::default() }).unwrap();
    let Cold::S3(read) = &loaded.config.objects.cold else { panic!("{:?}", loaded.config.objects) };
    assert_eq!(read.credentials.as_ref().map(|who| who.secret_access_key.reveal()), Some("hidden"));
    assert_eq!(loaded.warnings.len(), 1, "no TLS to another machine is said: {:?}", loaded.warnings);
}

#[test]
fn what_is_wrong_with_a_bucket_is_told_with_its_line_and_key() {
    for bad in
        ["s3://", "s3://ab", "s3://Bucket", "s3://-ab", "s3://a_b", "s3://abc//x", "s3://abc/../x", "s3://abc/a?b"]
    {
        let error = load_text(&format!("[objects]\ncold = \"{bad}\"\n")).unwrap_err();
        assert_eq!(places(&error), ["2:8 objects.cold"], "{bad}");
    }
    for (bad, place) in [
        ("endpoint = \"minio:9000\"", "4:12 objects.s3.endpoint"),
        ("endpoint = \"ftp://h\"", "4:12 objects.s3.endpoint"),
        ("endpoint = \"https://me:hidden@h\"", "4:12 objects.s3.endpoint"),
        ("endpoint = \"https://h/?a=b\"", "4:12 objects.s3.endpoint"),
        ("endpoint = \"http://10.0.0.1\"", "4:12 objects.s3.endpoint"),
        ("endpoint = \"http://localhost.example\"", "4:12 objects.s3.endpoint"),
        ("addressing = \"dns\"", "4:14 objects.s3.addressing"),
        ("allow_http = 1", "4:14 objects.s3.allow_http"),
        ("ca = \"no such file\"", "4:6 objects.s3.ca"),
        ("connect_timeout_ms = 0", "4:22 objects.s3.connect_timeout_ms"),
        ("retry_max = 101", "4:13 objects.s3.retry_max"),
        ("retries = 1", "4:1 objects.s3.retries"),
        ("access_key_id = \"me\"", "3:2 objects.s3"),
        ("secret_access_key = \"hidden\"", "3:2 objects.s3"),
        ("session_token = \"hidden\"", "3:2 objects.s3"),
    ] {
        let error = load_text(&format!("{BUCKET}[objects.s3]\n{bad}\n")).unwrap_err();
        assert_eq!(places(&error).len(), 1, "{bad}: {error}");
        assert_eq!(places(&error)[0].split(' ').nth(1), place.split(' ').nth(1), "{bad}: {error}");
        assert!(places(&error)[0].starts_with(&place[..1]), "{bad}: {error}");
        assert!(!error.to_string().contains("hidden"), "{error}");
    }
    let error = load_text("[objects.s3]\nregion = \"eu\"\n").unwrap_err();
    assert!(error.to_string().contains("objects.s3: has an effect only with cold"), "{error}");
}
