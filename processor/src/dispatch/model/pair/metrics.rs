//! Metrics: when they are collected, and what comes of it.

use opentelemetry_sdk::metrics::data::ResourceMetrics;

use super::super::config;
use super::*;
use crate::dispatch::collections::Pace;
use crate::signal::Collected;

impl Pair {
    pub(super) fn read(&mut self) {
        if !self.reference.has_reader() {
            self.tell("there is a reader of metrics");
            self.reference.add_reader(self.now);
            self.dispatch.set_pace(Pace::new(&config(), self.now));
        }
    }

    /// The driver looks.
    pub(super) fn collect(&mut self) -> Check {
        let due = self.reference.next_collection();
        let due = due.is_some_and(|due| due <= self.now);
        let begun = self.dispatch.collect_if_due(self.now);
        prop_assert_eq!(begun.is_some(), due, "whether metrics are to be collected");
        if let Some(id) = begun {
            self.begin_collection(id);
        }
        self.planned = self.dispatch.next_collection();
        Ok(())
    }

    /// As the runtimes do for a flush.
    pub(super) fn collect_now(&mut self) {
        let running = self.reference.has_reader() && !self.reference.closed[Signal::Metrics];
        if running && self.dispatch.may_collect() {
            let id = self.dispatch.begin_collection(self.now);
            self.begin_collection(id);
        }
    }

    fn begin_collection(&mut self, id: u64) {
        let serial = self.reference.begin_collection(id, self.now);
        self.tell(format!("collection {serial} begins, for batch {id}"));
    }

    pub(super) fn collected(&mut self, pick: usize, points: u64) -> Check {
        let collecting = self.reference.collecting();
        if collecting.is_empty() {
            return Ok(());
        }
        let serial = collecting[pick % collecting.len()];
        self.tell(format!(
            "collection {serial} has found {points} data points"
        ));
        self.reference.end_collection(serial, points);
        self.end_flushes();
        let found = (points > 0).then(|| Collected {
            metrics: ResourceMetrics::default(),
            points: points as usize,
        });
        let id = self.reference.items[serial].id;
        self.dispatch.end_collection(id, found);
        let waiting = &self.dispatch.lanes[Signal::Metrics].waiting;
        let waits = waiting.iter().any(|batch| batch.id == id);
        prop_assert_eq!(waits, self.reference.is_pending(serial), "what was found");
        // Once is enough.
        self.dispatch.end_collection(id, None);
        Ok(())
    }

    pub(super) fn serials_of_metrics(&self, batch: &Batch) -> Vec<Serial> {
        let items = self.reference.items.iter();
        let is_it = |item: &Item| item.signal == Signal::Metrics && item.id == batch.id;
        let serial = items.clone().position(is_it);
        vec![serial.expect("a batch has the id of its collection")]
    }

    /// When the next one is due, and whether the driver knows.
    pub(super) fn check_collections(&self) -> Check {
        let next = self.dispatch.next_collection();
        prop_assert_eq!(
            next,
            self.reference.next_collection(),
            "the next collection"
        );
        let may = self.dispatch.may_collect();
        prop_assert_eq!(may, self.reference.may_collect(), "room for a collection");
        let news = next.filter(|next| self.planned.is_none_or(|planned| *next < planned));
        let told = self.dispatch.collections.has_news();
        prop_assert!(news.is_none() || told, "the driver sleeps through {news:?}");
        Ok(())
    }
}
