//! The suites of the ports.

use super::world::Embedded;

mod log {
    tidegate_testkit::change_log_suite!(super::Embedded);
}

mod meta {
    tidegate_testkit::meta_store_suite!(super::Embedded);
}
