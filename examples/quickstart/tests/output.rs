//! The program learns, and its README shows what it prints.

use std::process::Command;

#[test]
fn it_learns_as_its_readme_says() {
    let program = env!("CARGO_BIN_EXE_quickstart");
    let output = Command::new(program).output().expect("it starts");
    assert!(output.status.success());
    let printed = String::from_utf8(output.stdout).expect("UTF-8");
    let shown = include_str!("../README.md").lines();
    let shown = shown.filter(|line| line.starts_with("    epoch"));
    assert_eq!(printed.lines().count(), 5);
    for (printed, shown) in printed.lines().zip(shown.map(str::trim)) {
        let parts = |line: &str| -> (String, f64) {
            let (epoch, rest) = line.split_once(": ").expect("an epoch");
            let (percent, _) = rest.split_once('%').expect("a share");
            (epoch.to_string(), percent.parse().expect("a number"))
        };
        let (printed, shown) = (parts(printed), parts(shown));
        assert_eq!(printed.0, shown.0);
        assert!((printed.1 - shown.1).abs() < 3.0, "{printed:?} {shown:?}");
        assert!(printed.1 > 75.0, "{printed:?}");
    }
}
