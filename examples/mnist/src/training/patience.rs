//! Early stopping.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::train::EarlyStoppingStrategy;
use burn::train::metric::store::EventStoreClient;

use crate::history::{History, SharedHistory};

/// Whether the validation loss has not improved for `patience` epochs.
pub fn out_of_patience(history: &History, patience: usize) -> bool {
    history
        .best_epoch()
        .is_some_and(|best| history.rows.len() - best >= patience)
}

/// Unlike Burn's own strategy this one keeps no state, so a resumed run counts the epochs of all
/// its sessions.
#[derive(Clone)]
pub struct Patience {
    pub epochs: usize,
    pub history: SharedHistory,
    /// Receives the epoch after which it stops.
    pub stopped: Arc<AtomicUsize>,
}

impl EarlyStoppingStrategy for Patience {
    fn should_stop(&mut self, epoch: usize, store: &EventStoreClient) -> bool {
        let stop = out_of_patience(&self.history.after(epoch, store), self.epochs);
        if stop {
            self.stopped.store(epoch, Ordering::Relaxed);
        }
        stop
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_counts_from_the_best_epoch() {
        let row = |epoch, loss| crate::history::EpochRow {
            epoch,
            valid_loss: Some(loss),
            ..Default::default()
        };
        let history = History {
            rows: vec![row(1, 0.5), row(2, 0.2), row(3, 0.3), row(4, 0.4)],
        };
        assert!(out_of_patience(&history, 2) && !out_of_patience(&history, 3));
        assert!(!out_of_patience(&History::default(), 1));
    }
}
