//! Turns panics of other crates into errors, without their message on the terminal.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}
static HOOK: Once = Once::new();

/// Runs `action`; a panic on this thread becomes its message.
///
/// For calls into crates that have no fallible form of a call: opening a GPU without a driver,
/// downloading without a network.
pub fn catch<T>(action: impl FnOnce() -> T) -> Result<T, String> {
    HOOK.call_once(|| {
        let previous = take_hook();
        set_hook(Box::new(move |info| {
            if !QUIET.get() {
                previous(info);
            }
        }));
    });
    let before = QUIET.replace(true);
    let result = catch_unwind(AssertUnwindSafe(action));
    QUIET.set(before);
    result.map_err(|payload| message(payload.as_ref()))
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without a message").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message() {
        let number = 7;
        assert_eq!(catch(|| 1), Ok(1));
        assert_eq!(
            catch(|| -> u8 { panic!("plain") }),
            Err("plain".to_string())
        );
        assert_eq!(
            catch(|| -> u8 { panic!("with {number}") }),
            Err("with 7".to_string())
        );
    }
}
