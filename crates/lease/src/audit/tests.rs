//! The audit's promises: stable names and fields, nothing secret, and a broken sink costs one count and nothing else.

use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tidegate_core::port::AuditUnavailable;
use tidegate_core::{Moment, Timestamp};

use super::*;

struct FixedClock;

#[async_trait]
impl Clock for FixedClock {
    fn now(&self) -> Moment {
        Moment::since_origin(Duration::from_secs(1))
    }

    fn timestamp(&self) -> Timestamp {
        Timestamp::from_unix_ms(1_795_255_200_007)
    }

    async fn sleep_until(&self, _: Moment) {}
}

#[derive(Default)]
struct Sink {
    lines: Mutex<Vec<String>>,
    fails: bool,
    panics: bool,
}

impl AuditSink for Sink {
    fn record(&self, record: &AuditRecord) -> Result<(), AuditUnavailable> {
        if self.panics {
            std::panic::resume_unwind(Box::new("the sink broke"));
        }
        if self.fails {
            return Err(AuditUnavailable::full());
        }
        self.lines.lock().push(serde_json::to_string(record).expect("a record is JSON"));
        Ok(())
    }
}

fn auditor(sink: Sink) -> (Auditor, Arc<Sink>) {
    let sink = Arc::new(sink);
    (Auditor::new(Arc::clone(&sink) as Arc<dyn AuditSink>, Arc::new(FixedClock)), sink)
}

const LEASE: LeaseId = LeaseId::from_bytes([0xab; 16]);

fn every_event() -> Vec<AuditEvent> {
    let mut events = vec![
        AuditEvent::StreamOpened {
            lease: LEASE,
            snapshot: SnapshotId::new("s-1"),
            query_hash: [0xcd; 32],
            source: "main".into(),
            from_row: 1_500,
        },
        AuditEvent::TokenExpiredDuringLease { lease: LEASE },
        AuditEvent::LeaseFenced { lease: LEASE, epoch: Epoch::FIRST },
        AuditEvent::LeaseExpired { lease: LEASE, epoch: Epoch::new(2) },
        AuditEvent::AuthRefused { code: "token_expired" },
        AuditEvent::ConfigChanged { key: "stream.max_global", from: 256, to: 1 },
    ];
    events.extend(CloseReason::ALL.map(|reason| AuditEvent::StreamClosed {
        lease: (reason != CloseReason::CapacityRefused).then_some(LEASE),
        reason,
        rows: 1,
        bytes: 2,
        from_row: 3,
        duration_ms: 4,
    }));
    events
}

#[test]
fn every_event_has_its_stable_name_and_fields() {
    let (auditor, sink) = auditor(Sink::default());
    let ann = Owner { tenant: "acme".into(), subject: "ann".into() };
    for event in every_event() {
        auditor.emit(Some(&ann), event);
    }
    let head = r#"{"at":"2026-11-21T10:00:00.007Z","event":"#;
    let who = r#""tenant":"acme","subject":"ann","#;
    let lease = format!(r#""lease":"{}""#, "ab".repeat(16));
    let mut wanted = vec![
        format!(
            r#"{head}"stream.opened",{who}{lease},"snapshot":"s-1","query_hash":"{}","source":"main","from_row":1500}}"#,
            "cd".repeat(32)
        ),
        format!(r#"{head}"stream.token_expired_during_lease",{who}{lease}}}"#),
        format!(r#"{head}"lease.fenced",{who}{lease},"epoch":1}}"#),
        format!(r#"{head}"lease.expired",{who}{lease},"epoch":2}}"#),
        format!(r#"{head}"auth.refused",{who}"code":"token_expired"}}"#),
        format!(r#"{head}"config.changed",{who}"key":"stream.max_global","from":256,"to":1}}"#),
    ];
    let reasons = [
        "complete",
        "cancelled",
        "failed",
        "reader_gone",
        "reader_stalled",
        "taken_over",
        "snapshot_expired",
        "capacity_refused",
        "integrity_failed",
        "draining",
    ];
    for reason in reasons {
        let lease = if reason == "capacity_refused" { String::new() } else { format!("{lease},") };
        wanted.push(format!(
            r#"{head}"stream.closed",{who}{lease}"reason":"{reason}","rows":1,"bytes":2,"from_row":3,"duration_ms":4}}"#
        ));
    }
    assert_eq!(*sink.lines.lock(), wanted);
    assert_eq!(auditor.dropped(), 0);
}

#[test]
fn rules_are_told_before_and_after_and_what_is_too_long_is_known_by_its_hash() {
    let (auditor, sink) = auditor(Sink::default());
    let long = format!("[{}]", " ".repeat(RULES_MAX_BYTES));
    let change = |before: &str, rules: &str| AuditEvent::RulesChanged {
        key: "limits.object.kill",
        from: 0,
        to: 1,
        before: before.into(),
        rules: rules.into(),
    };
    auditor.emit(None, change("[]", "[{}]"));
    auditor.emit(None, change("[]", &long));
    auditor.emit(None, change(&long, "[]"));
    let hash = |rules: &str| hex::encode(Sha256::digest(rules));
    let line = |before: &str, rules: &str, told: &str| {
        format!(
            r#"{{"at":"2026-11-21T10:00:00.007Z","event":"config.changed","key":"limits.object.kill","from_rules":0,"to_rules":1,"rules_before_sha256":"{}","rules_sha256":"{}",{told}}}"#,
            hash(before),
            hash(rules)
        )
    };
    let wanted = [
        line("[]", "[{}]", r#""rules_before":"[]","rules":"[{}]""#),
        line("[]", &long, r#""rules_before":"[]","rules_omitted":true"#),
        line(&long, "[]", r#""rules":"[]","rules_omitted":true"#),
    ];
    assert_eq!(*sink.lines.lock(), wanted);
}

#[test]
fn an_unknown_caller_has_no_tenant_and_no_subject() {
    let (auditor, sink) = auditor(Sink::default());
    auditor.emit(None, AuditEvent::AuthRefused { code: "unauthenticated" });
    let want = r#"{"at":"2026-11-21T10:00:00.007Z","event":"auth.refused","code":"unauthenticated"}"#;
    assert_eq!(*sink.lines.lock(), [want]);
}

#[test]
fn a_sink_that_fails_or_panics_is_counted_and_ends_nothing() {
    for sink in [Sink { fails: true, ..Sink::default() }, Sink { panics: true, ..Sink::default() }] {
        let (auditor, _sink) = auditor(sink);
        let clone = auditor.clone();
        let count = every_event().len() as u64;
        for event in every_event() {
            clone.emit(None, event);
        }
        assert_eq!(auditor.dropped(), count, "the clones count together");
    }
}

/// A recorder that knows one counter.
#[derive(Default)]
struct OneCounter(Arc<AtomicU64>);

impl metrics::Recorder for OneCounter {
    fn describe_counter(&self, _: metrics::KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}
    fn describe_gauge(&self, _: metrics::KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}
    fn describe_histogram(&self, _: metrics::KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}

    fn register_counter(&self, key: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Counter {
        assert_eq!(key.name(), "tidegate_audit_dropped_total");
        metrics::Counter::from_arc(Arc::clone(&self.0))
    }

    fn register_gauge(&self, _: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Gauge {
        metrics::Gauge::noop()
    }

    fn register_histogram(&self, _: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Histogram {
        metrics::Histogram::noop()
    }
}

#[test]
fn what_is_dropped_is_counted_in_the_metric_too() {
    let recorder = OneCounter::default();
    metrics::with_local_recorder(&recorder, || {
        let (broken, _sink) = auditor(Sink { fails: true, ..Sink::default() });
        let (whole, _sink) = auditor(Sink::default());
        for event in every_event() {
            broken.emit(None, event.clone());
            whole.emit(None, event);
        }
        assert_eq!((broken.dropped(), whole.dropped()), (every_event().len() as u64, 0));
    });
    assert_eq!(recorder.0.load(Ordering::Relaxed), every_event().len() as u64);
}
