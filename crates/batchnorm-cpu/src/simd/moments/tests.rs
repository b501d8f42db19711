//! The arithmetic between the readings.

use super::*;

fn merge(n_a: f64, a: [f64; 2], n_b: f64, b: [f64; 2]) -> [f64; 2] {
    <Moments as Reduction<f32>>::merge(n_a, a, n_b, b)
}

#[test]
fn the_worked_example() {
    assert_eq!(merge(2.0, [2.0, 2.0], 2.0, [7.0, 8.0]), [4.5, 35.0]);
}

#[test]
fn a_shift_far_from_the_mean_is_noticed_in_the_first_block() {
    // The values 1 and 3 about the shifts 2, 2.5 and 4.
    let about = |shift: f64, squares: f64| Reading {
        n: 2.0,
        shift,
        scale: 1.0,
        sum: 4.0 - 2.0 * shift,
        squares,
    };
    for (shift, squares, again) in [(2.0, 2.0, false), (2.5, 2.5, false), (4.0, 10.0, true)] {
        let reading = about(shift, squares);
        assert_eq!(reading.moments(), [2.0, 2.0]);
        let next = reading.again::<f32>(true, 0.0);
        assert_eq!(next, again.then_some((2.0, 1.0)));
        assert_eq!(reading.again::<f32>(false, 0.0), None);
    }
}

#[test]
fn squares_out_of_range_are_scaled_where_something_wider_exists() {
    let of = |sum, squares| Reading {
        n: 2.0,
        shift: 0.0,
        scale: 1.0,
        sum,
        squares,
    };
    let again = |sum, squares| of(sum, squares).again::<f32>(false, TINY);
    assert_eq!(again(4.0, f64::INFINITY), Some((2.0, DOWN)));
    assert_eq!(again(f64::NAN, f64::INFINITY), Some((0.0, DOWN)));
    assert_eq!(again(4e-25, 0.0), Some((2e-25, UP)));
    assert_eq!(again(0.0, 1.0), None);
    assert_eq!(of(4e-25, 0.0).again::<f32>(false, 0.0), None);
    assert_eq!(of(4.0, f64::INFINITY).again::<f64>(false, 0.0), None);
}

#[test]
fn merging_equal_constants_is_exact_and_nothing_is_neutral() {
    for c in [0.1, 1e10, -3.3e30] {
        assert_eq!(merge(3.0, [c, 0.0], 5.0, [c, 0.0]), [c, 0.0]);
    }
    assert_eq!(merge(0.0, [0.0, 0.0], 5.0, [2.0, 3.0]), [2.0, 3.0]);
    assert_eq!(merge(5.0, [2.0, 3.0], 0.0, [0.0, 0.0]), [2.0, 3.0]);
}
