//! Promises of `[limits.object]`.

use tidegate_batch::policy::{Access, Each, Rate};

use super::*;

#[test]
fn rules_are_read_from_the_file_and_from_the_environment() {
    let text = "[limits.object]\nkill = [{ usecase = \"u\", operations = [\"write\"] }]\n\
                [[limits.object.rate]]\nscopes = \"org=17\"\nrequests_per_second = 5\nburst = 9\neach = \"tenant\"\n";
    let rules = load_text(text).unwrap().config.object_rules;
    assert_eq!((rules.kill().len(), rules.rate().len()), (1, 1));
    assert_eq!(rules.kill()[0].operations, [Access::Write]);
    assert_eq!(rules.rate()[0].requests, Some(Rate { per_second: 5, burst: 9 }));
    assert_eq!(rules.rate()[0].each, Some(Each::Tenant));
    let env = env(&[
        ("TIDEGATE__LIMITS__OBJECT__KILL", "[{usecase = \"v\"}]"),
        ("TIDEGATE__LIMITS__OBJECT__RATE", "[{bytes_per_second = 65536}]"),
    ]);
    let loaded = load(&Inputs { env, ..Inputs::default() }).unwrap_or_else(|error| panic!("{error}"));
    let rules = loaded.config.object_rules;
    assert_eq!(rules.kill()[0].of.usecase.as_ref().map(Name::as_str), Some("v"));
    assert_eq!(rules.rate()[0].bytes, Some(Rate { per_second: 65_536, burst: 65_536 }));
}

#[test]
fn a_limit_that_is_no_number_or_too_large_a_one_is_refused_and_never_no_limit() {
    for number in ["nan", "-nan", "+nan", "inf", "1e300", "99999999999999999999", "9223372036854775807"] {
        let text = format!("[[limits.object.rate]]\nrequests_per_second = 5\nbytes_per_second = {number}\n");
        let error = load_text(&text).expect_err(number);
        assert!(error.problems().iter().all(|problem| problem.key.starts_with("limits.object.rate[0]")), "{error}");
        let nested = format!("[limits]\nobject.rate = [{{ requests_per_second = 5, bytes_per_second = {number} }}]\n");
        load_text(&nested).expect_err(number);
    }
    for number in ["nan", "36893488147419103232", "340282366920938463463374607431768211456"] {
        let env = env(&[(
            "TIDEGATE__LIMITS__OBJECT__RATE",
            &format!("[{{requests_per_second = 5, bytes_per_second = {number}}}]"),
        )]);
        load(&Inputs { env, ..Inputs::default() }).expect_err(number);
    }
}
