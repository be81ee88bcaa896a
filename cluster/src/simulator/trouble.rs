//! Trouble: processes that die and start again, leases that run out, members that do not reach etcd, and the end of it.

use super::gateway::SimGateway;
use super::laws::Broken;
use super::member::Who;
use super::tally::Met;
use super::world::World;
use crate::keys::Key;
use crate::lease::LeaseId;
use crate::record::Record;

/// So long after a lease was over, in milliseconds, etcd is late.
const LATE: u64 = 1_000;

impl World {
    /// Somebody who died starts again, or somebody who was away is back.
    pub(super) fn start(&mut self) -> Result<(), Broken> {
        if let Some(which) = self.workers.iter().position(|worker| !worker.is_up) {
            self.kill_or_start_worker(which);
        }
        if let Some(which) = self.gateways.iter().position(|gateway| !gateway.is_up) {
            self.kill_or_start_gateway(which);
        }
        if self.random.percent(60) {
            self.workers.iter_mut().for_each(|worker| worker.member.is_cut_off = false);
            for which in 0..self.gateways.len() {
                self.come_back(which)?;
            }
        }
        Ok(())
    }

    /// A gateway reaches etcd again. It may say what it knew while it was away before it hears of anything.
    fn come_back(&mut self, which: usize) -> Result<(), Broken> {
        let gateway = &mut self.gateways[which];
        let was_away = std::mem::take(&mut gateway.member.is_cut_off);
        if was_away && gateway.is_up && self.random.percent(50) {
            self.compose(which);
            self.tend(Who::Gateway(which))?;
        }
        Ok(())
    }

    /// Somebody who was away is back just when something is about to be let go, and is called.
    pub(super) fn intrude(&mut self) -> Result<(), Broken> {
        let is_away = |gateway: &SimGateway| {
            let is_there = self.etcd.entry(&Key::Gateway(gateway.id.clone())).is_some();
            gateway.is_up && gateway.takes_calls && !is_there
        };
        let Some(which) = self.gateways.iter().position(is_away) else { return Ok(()) };
        self.gateways[which].member.is_cut_off = false;
        self.compose(which);
        self.hurry(Who::Gateway(which))?;
        self.call_at(which);
        Ok(())
    }

    /// A gateway reaches etcd no more, and sooner or later is not registered any more.
    pub(super) fn cut_off_gateway(&mut self, which: usize) {
        if self.trouble == 0 {
            return;
        }
        let gateway = &mut self.gateways[which];
        gateway.member.is_cut_off = true;
        let (id, key) = (gateway.id.clone(), Key::Gateway(gateway.id.clone()));
        self.tell(|| format!("{id} is cut off from etcd"));
        let lease = self.etcd.entry(&key).map(|entry| entry.lease);
        if let (Some(lease), true) = (lease, self.random.percent(50)) {
            self.end_lease(lease);
        }
    }

    /// A worker reaches etcd no more. It answers calls, and holds what it held.
    pub(super) fn cut_off_worker(&mut self, which: usize) {
        let worker = &mut self.workers[which];
        worker.member.is_cut_off = true;
        let id = worker.id.clone();
        self.tell(|| format!("{id} is cut off from etcd"));
    }

    /// A lease ends that was over; or, seldom, one that was not: somebody has revoked it.
    pub(super) fn expire(&mut self) {
        let overdue: Vec<LeaseId> = self.etcd.overdue(self.now).collect();
        let is_sooner = overdue.is_empty() && self.random.percent(40);
        let leases = if is_sooner { self.etcd.leases().collect() } else { overdue };
        if !leases.is_empty() {
            let lease = *self.random.one_of(&leases);
            self.end_lease(lease);
        }
    }

    /// Leases that are over end, most of them, where nothing else is wrong all of them.
    pub(super) fn run_out(&mut self) {
        let overdue: Vec<LeaseId> = self.etcd.overdue(self.now).collect();
        let late: Vec<LeaseId> = self.etcd.overdue(self.now.saturating_sub(LATE)).collect();
        for lease in overdue {
            if self.trouble == 0 || self.random.percent(60) {
                self.tally.count_if(late.contains(&lease), Met::RunsOutLate);
                self.end_lease(lease);
            }
        }
    }

    fn end_lease(&mut self, lease: LeaseId) {
        self.lose_older_than(lease);
        let gone = self.etcd.expire(lease);
        for key in &gone {
            match key {
                Key::Gateway(id) => {
                    self.vanished.entry(id.clone()).or_insert(self.now);
                    let lives = self.gateways.iter().any(|gateway| gateway.id == *id && gateway.is_up);
                    self.tally.count_if(lives, Met::RunsOut);
                }
                Key::Worker(id) => {
                    let lives = self.workers.iter().any(|worker| worker.id == *id && worker.is_up);
                    self.tally.count_if(lives, Met::RunsOut);
                }
                _ => {}
            }
        }
        self.tell(|| format!("lease {lease} runs out, and {} entries are gone", gone.len()));
    }

    pub(super) fn kill_or_start_worker(&mut self, which: usize) {
        let now = self.instant();
        let worker = &mut self.workers[which];
        let (id, was_up) = (worker.id.clone(), worker.is_up);
        if was_up {
            worker.is_up = false;
        } else {
            worker.restart(now);
            self.checked = 0;
        }
        self.tell(|| format!("{id} {}", if was_up { "dies" } else { "starts" }));
    }

    pub(super) fn kill_or_start_gateway(&mut self, which: usize) {
        let (now, broken) = (self.instant(), self.broken);
        let gateway = &mut self.gateways[which];
        let (id, was_up) = (gateway.id.clone(), gateway.is_up);
        if was_up {
            gateway.is_up = false;
            self.calls.retain(|call| call.gateway != id);
        } else {
            gateway.restart(now, broken);
        }
        self.tell(|| format!("{id} {}", if was_up { "dies" } else { "starts" }));
    }

    /// Everybody comes back, everything that is on its way arrives or never will, and nobody asks for anything.
    pub(super) fn calm_down(&mut self) -> Result<(), Broken> {
        self.trouble = 0;
        self.tell(|| "from here on all is well".to_owned());
        for which in 0..self.workers.len() {
            self.workers[which].member.is_cut_off = false;
            if !self.workers[which].is_up {
                self.kill_or_start_worker(which);
            }
        }
        for which in 0..self.gateways.len() {
            self.gateways[which].member.is_cut_off = false;
            if !self.gateways[which].is_up {
                self.kill_or_start_gateway(which);
            }
        }
        while !self.wire.is_empty() {
            self.arrive(0)?;
        }
        self.let_an_hour_pass();
        Ok(())
    }

    /// Pins are taken away; refusals last an hour, unless they are taken back.
    fn let_an_hour_pass(&mut self) {
        let pins = self.etcd.keys().filter(|key| matches!(key, Key::Pin { .. }));
        for key in pins.cloned().collect::<Vec<_>>() {
            self.etcd.delete(&key);
        }
        let is_over = |(key, entry): &(&Key, &super::etcd::Entry)| match (key, &entry.record) {
            (Key::Nack { model, digest, worker }, Record::Nack(nack)) => {
                let worker = self.workers.iter().find(|other| other.id == *worker);
                let id = (model.to_string(), digest.to_string());
                // One that its worker knows nothing of should have been taken back long ago.
                worker.is_none_or(|worker| nack.boot_id != worker.boots.to_string() || worker.stands_by(&id))
            }
            (_, _) => false,
        };
        for key in self.etcd.entries().filter(is_over).map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.etcd.delete(&key);
        }
        self.workers.iter_mut().for_each(super::worker::SimWorker::forget_refusals);
    }
}
