//! What windows and charges promise.

use super::*;

const LENGTH: Span = Span::seconds(2);

fn at(millis: i64) -> Time {
    Time::from_millis(1_000_000_000 + millis)
}

#[test]
fn a_charge_counts_for_one_window_after_it_landed_and_half_a_percent_more_at_most() {
    let mut window = Window::new(Kind::Requests, LENGTH);
    window.hold(1);
    assert_eq!(window.room(1, at(1_000_000)), 0, "held counts without end");
    window.release(1);
    window.land(at(7), 1);
    assert_eq!(window.room(1, at(2_007)), 0);
    assert_eq!(window.room(1, at(2_017)), 1);
    let free = window.room_at(1, 1, at(8)).unwrap();
    assert!(free > at(2_007) && free <= at(2_017), "{free}");
    assert_eq!(
        (
            window.room(1, free),
            window.room(1, free - Duration::from_millis(1))
        ),
        (1, 0)
    );
    window.forget(free);
    assert!(window.is_empty());
}

#[test]
fn room_for_more_than_one_appears_when_enough_has_ceased() {
    let mut window = Window::new(Kind::InputTokens, LENGTH);
    for step in 0..10 {
        window.land(at(step * 100), 10);
    }
    let at_once = |amount| window.room_at(100, amount, at(1_000));
    let one = at_once(1).unwrap();
    assert!(one > at(2_000) && one <= at(2_010));
    assert!(at_once(25).unwrap() > at(2_200));
    assert!(
        at_once(1_000).unwrap() > at(2_900),
        "more than the limit: when it is empty"
    );
    window.hold(100);
    assert_eq!(window.room_at(100, 1, at(1_000)), None, "that takes news");
}

#[test]
fn what_is_kept_is_what_was() {
    let mut window = Window::new(Kind::Requests, LENGTH);
    for step in [0, 7, 900, 901, 1_999] {
        window.land(at(step), 2);
    }
    window.lift(at(901), 1);
    window.hold(3);
    window.learn(8);
    let packed = window.pack();
    let again = Window::unpack(Kind::Requests, LENGTH, 3, &packed, Some(8));
    assert_eq!(again, window);
    assert!(serde_json::to_string(&packed).unwrap().len() < 60);
}

#[test]
fn a_window_of_a_week_is_kept_in_a_few_hundred_numbers() {
    let mut window = Window::new(Kind::Requests, Span::seconds(7 * 86_400));
    for minute in 0..100_000 {
        window.land(at(minute * 60_000), 1);
        window.forget(at(minute * 60_000));
    }
    assert!(window.pack().len() <= 2 * 202, "{}", window.pack().len());
}

#[test]
fn a_job_without_a_word_about_its_length_is_taken_for_a_typical_one() {
    let mut window = Window::new(Kind::OutputTokens, LENGTH);
    assert_eq!(window.typical(1000), 100);
    for _ in 0..50 {
        window.learn(40);
    }
    assert_eq!(window.typical(1000), 50);
    let left = Left {
        kind: Kind::OutputTokens,
        most: 1000,
        left: 120,
        typical: 50,
    };
    let mut allowance = Allowance::new(vec![left]);
    let (silent, loud) = (Needs::of(400, None), Needs::of(400, Some(9_999)));
    assert_eq!(allowance.charge(&silent).get(Kind::InputTokens), 100);
    assert!(!allowance.fits(&loud), "only when nothing else counts");
    allowance.take(&silent);
    assert!(allowance.fits(&silent));
    allowance.take(&silent);
    assert!(!allowance.fits(&silent));
    assert!(Allowance::new(vec![Left { left: 1000, ..left }]).fits(&loud));
}

#[test]
fn the_mean_follows_what_is_used_and_never_sticks_below_it() {
    let mut window = Window::new(Kind::OutputTokens, LENGTH);
    window.learn(0);
    for _ in 0..100 {
        window.learn(100);
    }
    assert_eq!(window.mean(), Some(100));
}
