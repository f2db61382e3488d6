//! The lease machine against a naive model: random commands at random times, every outcome compared, and the invariants
//! checked on the history that the outcomes make.

use proptest::prelude::*;

use super::*;

const RESOURCES: u8 = 4;

/// A command with the epoch as an offset to the resource's latest one, so that most of them hit something.
#[derive(Debug, Clone)]
enum Step {
    Acquire { resource: u8, holder: u8, ttl_ms: u64 },
    Fence { resource: u8, holder: u8, ttl_ms: u64 },
    Renew { resource: u8, back: u64, ttl_ms: u64 },
    Release { resource: u8, back: u64 },
    Check { resource: u8, back: u64 },
    Expire,
}

/// How far the clock moves before a step; it may go back.
fn step() -> impl Strategy<Value = (i64, Step)> {
    let resource = || 0..RESOURCES;
    // 0 is one epoch too many, 1 the latest, 2 and 3 older ones.
    let back = || prop_oneof![1 => Just(0_u64), 6 => Just(1), 2 => 2..4_u64];
    let ttl = || prop_oneof![1 => Just(0_u64), 8 => 1..60_u64, 1 => Just(u64::MAX)];
    let step = prop_oneof![
        4 => (resource(), 0..3_u8, ttl())
            .prop_map(|(resource, holder, ttl_ms)| Step::Acquire { resource, holder, ttl_ms }),
        2 => (resource(), 0..3_u8, ttl())
            .prop_map(|(resource, holder, ttl_ms)| Step::Fence { resource, holder, ttl_ms }),
        3 => (resource(), back(), ttl()).prop_map(|(resource, back, ttl_ms)| Step::Renew { resource, back, ttl_ms }),
        2 => (resource(), back()).prop_map(|(resource, back)| Step::Release { resource, back }),
        2 => (resource(), back()).prop_map(|(resource, back)| Step::Check { resource, back }),
        2 => Just(Step::Expire),
    ];
    let moved = prop_oneof![3 => Just(0_i64), 6 => 1..30_i64, 1 => -50..0_i64];
    (moved, step)
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Released,
    Expired,
}

#[derive(Debug, Clone)]
struct Row {
    resource: u8,
    epoch: u64,
    holder: u8,
    deadline: Moment,
    granted: u64,
    end: Option<(End, u64)>,
}

/// The same rules over one list that is walked from end to end. It keeps one row a resource, as the machine must.
struct Model {
    bounds: MachineBounds,
    rows: Vec<Row>,
    now: Moment,
    floor: u64,
    count: u64,
}

impl Model {
    fn row(&self, resource: u8) -> Option<&Row> {
        self.rows.iter().find(|row| row.resource == resource)
    }

    fn latest(&self, resource: u8) -> u64 {
        self.row(resource).map_or(self.floor, |row| row.epoch)
    }

    fn held(&self) -> usize {
        self.rows.iter().filter(|row| row.end.is_none()).count()
    }

    fn grant(&mut self, resource: u8, holder: u8, ttl: Duration, force: bool) -> Outcome<u8> {
        let row = self.row(resource).cloned();
        let open = row.as_ref().filter(|row| row.end.is_none());
        if let Some(open) = open
            && open.deadline > self.now
            && !force
        {
            return Outcome::HeldBy { epoch: Epoch::new(open.epoch), expires_at: open.deadline };
        }
        if open.is_none() && self.held() >= self.bounds.held_max {
            return Outcome::Full { limit: self.bounds.held_max };
        }
        let Some(epoch) = self.latest(resource).checked_add(1) else { return Outcome::EpochExhausted };
        let displaced = open.map(|row| Epoch::new(row.epoch));
        self.rows.retain(|row| row.resource != resource);
        let deadline = self.now.after(ttl);
        self.rows.push(Row { resource, epoch, holder, deadline, granted: self.count, end: None });
        Outcome::Acquired { epoch: Epoch::new(epoch), expires_at: deadline, displaced }
    }

    /// The answer for a lease that is not held, or its deadline.
    fn judge(&self, resource: u8, epoch: u64) -> Result<Moment, Outcome<u8>> {
        let Some(row) = self.row(resource) else { return Err(Outcome::Unknown) };
        match (epoch.cmp(&row.epoch), row.end) {
            (std::cmp::Ordering::Less, _) => Err(Outcome::Fenced { current: Epoch::new(row.epoch) }),
            (std::cmp::Ordering::Greater, _) => Err(Outcome::Unknown),
            (_, Some((End::Released, _))) => Err(Outcome::Released),
            (_, Some((End::Expired, _))) => Err(Outcome::Expired),
            (_, None) if row.deadline <= self.now => Err(Outcome::Expired),
            (_, None) => Ok(row.deadline),
        }
    }

    fn end(&mut self, resource: u8, how: End) {
        let stamp = self.count;
        self.count += 1;
        let row = self.rows.iter_mut().find(|row| row.resource == resource).expect("only what is held is ended");
        row.end = Some((how, stamp));
        while self.rows.iter().filter(|row| row.end.is_some()).count() > self.bounds.remembered_max {
            let oldest = (0..self.rows.len())
                .filter(|index| self.rows[*index].end.is_some())
                .min_by_key(|index| self.rows[*index].end.map(|(_, stamp)| stamp))
                .expect("there is more than none");
            self.floor = self.floor.max(self.rows.remove(oldest).epoch);
        }
    }

    fn apply(&mut self, now: Moment, step: &Step) -> Outcome<u8> {
        self.now = self.now.max(now);
        self.count += 1;
        match *step {
            Step::Acquire { resource, holder, ttl_ms } => self.grant(resource, holder, ms(ttl_ms), false),
            Step::Fence { resource, holder, ttl_ms } => self.grant(resource, holder, ms(ttl_ms), true),
            Step::Renew { resource, back, ttl_ms } => match self.judge(resource, self.epoch(resource, back)) {
                Err(outcome) => outcome,
                Ok(deadline) => {
                    let expires_at = deadline.max(self.now.after(ms(ttl_ms)));
                    for row in self.rows.iter_mut().filter(|row| row.resource == resource) {
                        row.deadline = expires_at;
                    }
                    Outcome::Renewed { expires_at }
                }
            },
            Step::Release { resource, back } => match self.judge(resource, self.epoch(resource, back)) {
                Err(outcome) => outcome,
                Ok(_) => {
                    self.end(resource, End::Released);
                    Outcome::Released
                }
            },
            Step::Check { resource, back } => match self.judge(resource, self.epoch(resource, back)) {
                Err(outcome) => outcome,
                Ok(expires_at) => Outcome::Held { expires_at },
            },
            Step::Expire => {
                let mut due: Vec<Row> =
                    self.rows.iter().filter(|row| row.end.is_none() && row.deadline <= self.now).cloned().collect();
                due.sort_by_key(|row| (row.deadline, row.granted));
                let more = due.len() > self.bounds.sweep_max;
                due.truncate(self.bounds.sweep_max);
                for row in &due {
                    self.end(row.resource, End::Expired);
                }
                let expired = due.into_iter().map(|row| ExpiredLease {
                    resource: row.resource,
                    epoch: Epoch::new(row.epoch),
                    holder: holder(row.holder),
                    expired_at: row.deadline,
                });
                Outcome::Swept { expired: expired.collect(), more }
            }
        }
    }

    fn epoch(&self, resource: u8, back: u64) -> u64 {
        self.latest(resource).saturating_add(1).saturating_sub(back)
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn holder(number: u8) -> Owner {
    Owner { tenant: "acme".into(), subject: number.to_string().into() }
}

fn command(model: &Model, step: &Step) -> Command<u8> {
    let epoch = |resource, back| Epoch::new(model.epoch(resource, back));
    match *step {
        Step::Acquire { resource, holder: who, ttl_ms } => {
            Command::Acquire { resource, holder: holder(who), ttl: ms(ttl_ms) }
        }
        Step::Fence { resource, holder: who, ttl_ms } => {
            Command::Fence { resource, holder: holder(who), ttl: ms(ttl_ms) }
        }
        Step::Renew { resource, back, ttl_ms } => {
            Command::Renew { resource, epoch: epoch(resource, back), ttl: ms(ttl_ms) }
        }
        Step::Release { resource, back } => Command::Release { resource, epoch: epoch(resource, back) },
        Step::Check { resource, back } => Command::Check { resource, epoch: epoch(resource, back) },
        Step::Expire => Command::Expire,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn the_machine_does_what_the_naive_model_does(
        held_max in 1..5_usize,
        remembered_max in 0..4_usize,
        sweep_max in 1..4_usize,
        near_the_end in prop::bool::weighted(0.1),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let bounds = MachineBounds { held_max, remembered_max, sweep_max };
        let floor = if near_the_end { u64::MAX - 5 } else { 0 };
        let mut machine = LeaseMachine::above(bounds, Epoch::new(floor));
        let mut model = Model { bounds, rows: Vec::new(), now: Moment::ORIGIN, floor, count: 0 };
        let mut clock = 1_000_i64;
        // What the outcomes alone must show: epochs of a resource rise for ever, and each lease ends once.
        let mut highest = [floor; RESOURCES as usize];
        let mut ends = std::collections::HashSet::new();

        for (moved, step) in steps {
            clock = (clock + moved).max(0);
            let now = Moment::since_origin(ms(clock.unsigned_abs()));
            let asked = command(&model, &step);
            let got = machine.apply(now, asked.clone());
            prop_assert_eq!(&got, &model.apply(now, &step), "{:?} at {:?}", step, now);

            match (&got, &asked) {
                (
                    Outcome::Acquired { epoch, displaced, .. },
                    Command::Acquire { resource, .. } | Command::Fence { resource, .. },
                ) => {
                    let before = &mut highest[usize::from(*resource)];
                    prop_assert!(epoch.get() > *before, "an epoch went back");
                    *before = epoch.get();
                    if let Some(displaced) = displaced {
                        prop_assert!(ends.insert((*resource, *displaced)), "a lease ended twice");
                    }
                }
                (Outcome::Swept { expired, .. }, _) => {
                    prop_assert!(expired.len() <= sweep_max);
                    for lease in expired {
                        prop_assert!(ends.insert((lease.resource, lease.epoch)), "a lease ended twice");
                    }
                }
                (Outcome::Released, Command::Release { resource, epoch }) => {
                    ends.insert((*resource, *epoch));
                }
                (
                    Outcome::Renewed { .. } | Outcome::Held { .. },
                    Command::Renew { resource, epoch, .. } | Command::Check { resource, epoch },
                ) => {
                    prop_assert!(!ends.contains(&(*resource, *epoch)), "an ended lease came back");
                    prop_assert_eq!(highest[usize::from(*resource)], epoch.get(), "a fenced lease is held");
                }
                _ => {}
            }

            prop_assert_eq!(machine.held(), model.held());
            prop_assert!(machine.held() <= held_max);
            prop_assert!(machine.remembered() <= remembered_max);
            prop_assert_eq!(machine.remembered(), model.rows.len() - model.held());
            let next = model.rows.iter().filter(|row| row.end.is_none()).map(|row| row.deadline).min();
            prop_assert_eq!(machine.next_deadline(), next);
            prop_assert_eq!(
                machine.highest_epoch().map(Epoch::get),
                model.rows.iter().map(|row| row.epoch).chain([model.floor]).max()
            );
            for resource in 0..RESOURCES {
                let held = machine.find(now, &resource);
                let held = held.map(|lease| (lease.epoch.get(), lease.holder.clone(), lease.expires_at));
                let row = model.row(resource).filter(|row| row.end.is_none() && row.deadline > model.now);
                prop_assert_eq!(held, row.map(|row| (row.epoch, holder(row.holder), row.deadline)));
            }
        }
    }
}
