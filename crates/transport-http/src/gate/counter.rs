//! How many requests there were, by route, method and class of status. A counter is looked up once and kept: the lookup costs more
//! than many a request. It measures nothing else.

use std::sync::OnceLock;

use http::{Method, StatusCode};
use metrics::Counter;

use super::table::ROUTES;

/// The labels of methods: a bounded number, since a client can invent methods.
const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other"];
/// The labels of statuses.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The counters, each made when it is first needed.
pub(super) struct RequestCounters(Vec<OnceLock<Counter>>);

impl RequestCounters {
    pub(super) fn new() -> Self {
        // The last route is that of requests that have none.
        let count = (ROUTES.len() + 1) * METHODS.len() * CLASSES.len();
        Self((0..count).map(|_| OnceLock::new()).collect())
    }

    /// Counts a request: `route` is its place in the table.
    pub(super) fn count(&self, route: Option<usize>, method: &Method, status: StatusCode) {
        let route = route.unwrap_or(ROUTES.len());
        let method = method_place(method);
        let class = usize::from(status.as_u16() / 100).clamp(1, CLASSES.len()) - 1;
        let place = (route * METHODS.len() + method) * CLASSES.len() + class;
        let Some(slot) = self.0.get(place) else { return };
        let counter = slot.get_or_init(|| {
            let template = ROUTES.get(route).map_or("unknown", |route| route.template);
            metrics::counter!(
                "tidegate_http_requests_total",
                "route" => template, "method" => METHODS[method], "status" => CLASSES[class]
            )
        });
        counter.increment(1);
    }
}

/// A method as a label.
pub(super) fn method_label(method: &Method) -> &'static str {
    METHODS[method_place(method)]
}

fn method_place(method: &Method) -> usize {
    METHODS.iter().position(|known| *known == method.as_str()).unwrap_or(METHODS.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_method_and_status_has_a_counter_of_its_own() {
        let counters = RequestCounters::new();
        let invented = Method::from_bytes(b"BREW").unwrap();
        for route in (0..ROUTES.len()).map(Some).chain([None]) {
            for method in [Method::GET, Method::HEAD, Method::POST, Method::DELETE, Method::OPTIONS, invented.clone()] {
                for status in [100, 200, 304, 404, 503, 999] {
                    counters.count(route, &method, StatusCode::from_u16(status).unwrap());
                }
            }
        }
        // 999 counts as 5xx, which is the counter of 503.
        let made = counters.0.iter().filter(|slot| slot.get().is_some()).count();
        assert_eq!(made, (ROUTES.len() + 1) * 6 * 5);
        assert_eq!(method_label(&invented), "other");
    }
}
