//! Every route as the gate sees it: who may use which method, what the query string may say. It knows no route's work.

use tidegate_core::Scope;

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everybody, without a token.
    Open,
    /// Everybody with a good token.
    AnyToken,
    /// Whose token carries the scope.
    Scope(Scope),
    /// Whose token carries one of these scopes; what it may do in particular the route judges.
    AnyOf(&'static [Scope]),
    /// The same for an object; what is about an upload in parts needs the right to write, whatever the method, and who reads at a
    /// signed address needs no token.
    Object(Scope),
}

/// What the query string of a request may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QueryString {
    /// These parameters, each at most once; none, where the list is empty.
    Known(&'static [&'static str]),
    /// The route reads it by rules of its own.
    Own,
}

/// A method of a route.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule {
    /// As HTTP writes it. `HEAD` goes by the rule of `GET`.
    pub(crate) method: &'static str,
    pub(crate) access: Access,
    /// Whether it begins work that a server on its way out must not begin.
    pub(crate) new_work: bool,
    pub(crate) query: QueryString,
    /// The body is kept as it came, with its coding: nobody needs to decode it.
    pub(crate) any_coding: bool,
}

/// A route as the gate sees it.
#[derive(Debug)]
pub(crate) struct Route {
    /// As the router writes it; also the metrics' label.
    pub(crate) template: &'static str,
    /// What `Allow` says.
    pub(crate) allow: &'static str,
    pub(crate) rules: &'static [Rule],
    /// Whether `OPTIONS` is the route's own to answer, without a token: browsers ask before they send.
    pub(crate) preflight: bool,
    /// Whether it is asked so often that what each request costs counts.
    pub(crate) hot: bool,
}

impl Route {
    /// The rule that a method goes by; `None` where the route does not take it.
    pub(crate) fn rule(&self, method: &str) -> Option<&'static Rule> {
        let method = if method == "HEAD" { "GET" } else { method };
        self.rules.iter().find(|rule| rule.method == method)
    }
}

const fn rule(method: &'static str, access: Access) -> Rule {
    Rule { method, access, new_work: false, query: QueryString::Known(&[]), any_coding: false }
}

const fn scoped(method: &'static str, scope: Scope) -> Rule {
    rule(method, Access::Scope(scope))
}

impl Rule {
    const fn new_work(mut self) -> Self {
        self.new_work = true;
        self
    }

    const fn query(mut self, known: &'static [&'static str]) -> Self {
        self.query = QueryString::Known(known);
        self
    }

    const fn any_coding(mut self) -> Self {
        self.any_coding = true;
        self
    }

    const fn own_query(mut self) -> Self {
        self.query = QueryString::Own;
        self
    }
}

const fn route(template: &'static str, allow: &'static str, rules: &'static [Rule]) -> Route {
    Route { template, allow, rules, preflight: false, hot: false }
}

impl Route {
    const fn hot(mut self) -> Self {
        self.hot = true;
        self
    }
}

const GET: &str = "GET, HEAD, OPTIONS";
const POST: &str = "POST, OPTIONS";
const DELETE: &str = "DELETE, OPTIONS";
const PUT_GET_DELETE: &str = "GET, HEAD, PUT, DELETE, OPTIONS";

/// Every route. A path that is not here is 404, a method that is not in `allow` is 405.
///
/// A consumer needs to read and no more: joining, polling, committing and acknowledging take `stream:read`. Making a group,
/// removing it and moving it are the stream owner's. What lets a consumer keep what it has done (commit, acknowledge, leave)
/// works while the server drains; what begins something does not.
pub(crate) const ROUTES: &[Route] = &[
    // The hottest first: the list is searched from its beginning.
    route(
        "/v1/streams/{stream}/records",
        "GET, HEAD, POST, OPTIONS",
        &[
            scoped("POST", Scope::StreamWrite).new_work(),
            scoped("GET", Scope::StreamRead).new_work().query(&["partition", "from", "limit", "max_bytes", "wait_ms"]),
        ],
    )
    .hot(),
    route("/v1/streams/{stream}/groups/{group}/poll", POST, &[scoped("POST", Scope::StreamRead).new_work()]).hot(),
    route("/v1/streams/{stream}/groups/{group}/commit", POST, &[scoped("POST", Scope::StreamRead)]).hot(),
    route("/v1/streams/{stream}/groups/{group}/ack", POST, &[scoped("POST", Scope::StreamRead)]).hot(),
    route("/v1/streams/{stream}/groups/{group}/seek", POST, &[scoped("POST", Scope::StreamWrite).new_work()]),
    route("/v1/streams/{stream}/groups/{group}/members", POST, &[scoped("POST", Scope::StreamRead).new_work()]),
    route("/v1/streams/{stream}/groups/{group}/members/{member}/heartbeat", POST, &[scoped("POST", Scope::StreamRead)]),
    route("/v1/streams/{stream}/groups/{group}/members/{member}", DELETE, &[scoped("DELETE", Scope::StreamRead)]),
    route(
        "/v1/streams/{stream}/groups/{group}",
        PUT_GET_DELETE,
        &[
            scoped("GET", Scope::StreamRead),
            scoped("PUT", Scope::StreamWrite).new_work(),
            scoped("DELETE", Scope::StreamWrite).new_work(),
        ],
    ),
    route("/v1/streams/{stream}/groups", GET, &[scoped("GET", Scope::StreamRead).query(&["after", "limit"])]),
    route(
        "/v1/streams/{stream}",
        PUT_GET_DELETE,
        &[
            scoped("GET", Scope::StreamRead),
            scoped("PUT", Scope::StreamWrite).new_work(),
            scoped("DELETE", Scope::StreamWrite).new_work(),
        ],
    ),
    route("/v1/streams", GET, &[scoped("GET", Scope::StreamRead).query(&["after", "limit", "prefix"])]),
    route("/v1/ingest/{stream}", POST, &[scoped("POST", Scope::StreamWrite).new_work()]),
    route("/v1/sources", GET, &[scoped("GET", Scope::StreamRead)]),
    route("/v1/sources/{source}", GET, &[scoped("GET", Scope::StreamRead)]),
    route("/v1/sources/{source}/acknowledge", POST, &[scoped("POST", Scope::Admin).new_work()]),
    route("/v1/sources/{source}/retry", POST, &[scoped("POST", Scope::Admin).new_work()]),
    // Jobs belong to no tenant, so only who may see the whole server sees them.
    route("/v1/checkpoints", GET, &[scoped("GET", Scope::Admin).query(&["after", "limit"])]),
    route("/v1/checkpoints/{job}", GET, &[scoped("GET", Scope::Admin).query(&["before", "limit"])]),
    route(
        crate::route::object::OBJECT,
        "GET, HEAD, PUT, POST, DELETE, OPTIONS",
        &[
            rule("GET", Access::Object(Scope::ObjectRead)).new_work().query(&[
                "upload",
                "expires",
                "key_id",
                "signature",
            ]),
            rule("PUT", Access::Object(Scope::ObjectWrite)).new_work().query(&["upload", "part"]).any_coding(),
            rule("POST", Access::Object(Scope::ObjectWrite)).new_work().query(&["uploads", "upload"]).any_coding(),
            rule("DELETE", Access::Object(Scope::ObjectDelete)).new_work().query(&["upload"]),
        ],
    )
    .hot(),
    route(
        crate::route::object::COLLECTION,
        "GET, HEAD, POST, OPTIONS",
        &[
            scoped("GET", Scope::ObjectRead).new_work().query(&["prefix", "after", "limit"]),
            scoped("POST", Scope::ObjectWrite).new_work().any_coding(),
        ],
    ),
    route(
        crate::route::object::BATCH,
        POST,
        &[rule("POST", Access::AnyOf(&[Scope::ObjectRead, Scope::ObjectWrite, Scope::ObjectDelete])).new_work()],
    ),
    Route {
        template: crate::route::durable::TEMPLATE,
        allow: "GET, HEAD, PUT, POST, DELETE, OPTIONS",
        rules: &[
            scoped("POST", Scope::StreamWrite).new_work().own_query(),
            scoped("GET", Scope::StreamRead).new_work().own_query(),
            scoped("PUT", Scope::StreamWrite).new_work().own_query(),
            scoped("DELETE", Scope::StreamWrite).new_work().own_query(),
        ],
        preflight: true,
        hot: true,
    },
    route("/v1/query", POST, &[scoped("POST", Scope::Query).new_work()]),
    route("/v1/query/resume", POST, &[scoped("POST", Scope::Query).new_work()]),
    route("/v1/query/{cursor}", DELETE, &[scoped("DELETE", Scope::Query)]),
    route("/v1/leases", GET, &[scoped("GET", Scope::Query)]),
    route(
        "/v1/config",
        "GET, HEAD, PATCH, OPTIONS",
        &[scoped("GET", Scope::Admin), scoped("PATCH", Scope::Admin).new_work()],
    ),
    route("/v1/limits", GET, &[rule("GET", Access::AnyToken)]),
    route("/v1/version", GET, &[rule("GET", Access::AnyToken)]),
    route("/healthz", GET, &[rule("GET", Access::Open)]),
    route("/readyz", GET, &[rule("GET", Access::Open)]),
    route("/metrics", GET, &[rule("GET", Access::Open)]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_allow_says_is_what_the_rules_take() {
        for route in ROUTES {
            let told: Vec<&str> = route.allow.split(", ").collect();
            assert!(told.contains(&"OPTIONS"), "{}", route.template);
            for method in ["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"] {
                assert_eq!(route.rule(method).is_some(), told.contains(&method), "{} {method}", route.template);
            }
        }
    }
}
