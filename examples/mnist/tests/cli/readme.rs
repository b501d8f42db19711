//! The README shows what the program prints: the same words, numbers that are near. They differ a
//! little between processors, and speeds between machines; `compare` would take a minute.

use crate::*;

const RUN: &str = "    $ cargo run --release -p mnist";

#[test]
fn the_readme_shows_what_the_program_prints() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).expect("README.md");
    let assets = root.join("assets").display().to_string();
    let readme = readme.replace("examples/mnist/assets", &assets);
    let base = folder();
    let mut commands = 0;
    for block in readme
        .split(RUN)
        .skip(1)
        .filter(|block| !block.starts_with(" -- compare"))
    {
        let (flags, output) = block.split_once('\n').expect("output");
        let flags = flags.trim_start_matches(" --");
        let device = if flags.is_empty() {
            "--device flex"
        } else {
            ""
        };
        let run = mnist(&base, &format!("{flags} {device}"))
            .output()
            .expect("starts");
        let printed = text(&run.stderr) + &text(&run.stdout);
        let mut printed_lines = printed.lines();
        let shown = output
            .lines()
            .take_while(|line| line.is_empty() || line.starts_with("    "));
        for line in shown.filter(|line| !line.is_empty() && line.trim() != "...") {
            let found = printed_lines.any(|printed| alike(line, printed));
            assert!(
                found,
                "`{line}` is not what it prints for `{flags}`:\n{printed}"
            );
        }
        commands += 1;
    }
    assert_eq!(commands, 5);
}

fn alike(shown: &str, printed: &str) -> bool {
    let words = |line: &str| {
        line.split_whitespace()
            .map(String::from)
            .collect::<Vec<_>>()
    };
    let (shown, printed) = (words(shown), words(printed));
    let pairs = shown.iter().zip(&printed).enumerate();
    let mut alike = pairs.map(|(at, (shown, word))| {
        let number = |word: &str| word.trim_end_matches('%').parse::<f64>();
        let bar = |word: &str| word.chars().all(|letter| "#.".contains(letter));
        // A time or a speed.
        let free = printed
            .get(at + 1)
            .is_some_and(|unit| ["images/s", "s"].contains(&&unit[..]));
        match (number(shown), number(word)) {
            _ if shown == word || bar(shown) && bar(word) => true,
            (Ok(_), Ok(_)) if free => true,
            (Ok(a), Ok(b)) if shown.ends_with('%') => (a - b).abs() < 5.0,
            // A loss hangs on a few images that a network is very sure of.
            (Ok(a), Ok(b)) => (a - b).abs() < 0.6 * a.abs().max(b.abs()),
            _ => false,
        }
    });
    shown.len() == printed.len() && alike.all(|alike| alike)
}
