//! `predict`, `compare` and `devices`.

use crate::*;

#[test]
fn prediction_knows_most_test_images_in_any_form() {
    let (base, _) = trained();
    let images = folder();
    let set = embedded();
    let path = |name: &str| images.at(name).to_str().expect("UTF-8").to_string();
    let files: Vec<String> = (0..40).map(|at| path(&format!("{at}.png"))).collect();
    for (file, pixels) in files.iter().zip(set.test.pixels.chunks(784)) {
        let gray = image::GrayImage::from_raw(28, 28, pixels.to_vec()).expect("28x28");
        gray.save(file).expect("saved");
    }
    let predictions = report(base, &format!("predict {}", files.join(" ")));
    let label = |at: usize| {
        predictions[at]["classes"][0]["label"]
            .as_u64()
            .expect("a label")
    };
    let right = (0..40)
        .filter(|at| label(*at) == u64::from(set.test.labels[*at]))
        .count();
    assert!(right >= 28, "{right} of 40");

    // The same image large, in colour, dark on light, as JPEG.
    let gray = image::open(&files[0]).expect("an image").to_luma8();
    let large = image::imageops::resize(&gray, 280, 280, image::imageops::FilterType::Nearest);
    let large = image::RgbImage::from_fn(280, 280, |x, y| {
        image::Rgb([255 - large.get_pixel(x, y).0[0]; 3])
    });
    let large_path = path("large.jpg");
    large.save(&large_path).expect("saved");
    let same = report(base, &format!("predict --invert --top 10 {large_path}"));
    assert_eq!(
        same[0]["classes"][0]["label"],
        predictions[0]["classes"][0]["label"]
    );
    assert_eq!(same[0]["classes"].as_array().map(Vec::len), Some(10));
    let plain = succeed(&mut mnist(base, &format!("predict --invert {large_path}")));
    assert!(
        plain.contains("large.jpg") && plain.matches('%').count() == 3,
        "{plain}"
    );

    let whole = fs::read(&large_path).expect("read");
    fs::write(path("part.jpg"), &whole[..whole.len() / 2]).expect("written");
    for (file, part) in [
        ("missing.png".to_string(), "missing.png"),
        ("artifacts/mnist/config.json".to_string(), "config.json"),
        (path("part.jpg"), "part.jpg"),
    ] {
        refuse(
            base,
            &format!("predict {file}"),
            &format!("{part}|PNG and JPEG"),
        );
    }
}

/// A large picture takes little more memory than its own pixels: once three times that on top.
#[test]
#[cfg(target_os = "linux")]
#[allow(clippy::zombie_processes)] // wait4 waits for it
fn large_pictures_take_little_memory() {
    let (base, _) = trained();
    let images = folder();
    let path = images.at("large.png");
    image::GrayImage::new(12_000, 12_000)
        .save(&path)
        .expect("saved");
    let child = mnist(base, "predict")
        .arg(&path)
        .stdout(Stdio::null())
        .spawn()
        .expect("starts");
    let (mut status, mut usage) = (0, unsafe_zeroed_rusage());
    // SAFETY: both pointers are to live values; the child is ours and nobody else waits for it.
    let id = unsafe { libc::wait4(child.id() as i32, &mut status, 0, &mut usage) };
    assert_eq!((id, status), (child.id() as i32, 0));
    let megabytes = usage.ru_maxrss / 1024;
    assert!(megabytes < 144 + 250, "{megabytes} MB");
    let huge = images.at("huge.png");
    image::RgbaImage::new(12_000, 12_000)
        .save(&huge)
        .expect("saved");
    fail(
        mnist(base, "predict").arg(&huge),
        1,
        "huge.png|576000000 bytes",
    );
}

#[cfg(target_os = "linux")]
fn unsafe_zeroed_rusage() -> libc::rusage {
    // SAFETY: a struct of integers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

#[test]
fn comparison_writes_picture_table_and_json() {
    let base = folder();
    let flags = "compare --device flex --epochs 1 --input 100 --out cmp";
    let command = format!("{flags} --seeds 2 --lrs 0.001,0.01 --norms batch,burn,none");
    let result = report(&base, &command);
    assert_eq!(
        names(base.at("cmp")),
        ".lock compare.json compare.png compare.txt"
    );
    assert_eq!(result["runs"].as_array().map(Vec::len), Some(12));
    let groups = result["groups"].as_array().expect("groups");
    assert_eq!(groups.len(), 6);
    for group in groups {
        assert!(number(group, "test_accuracy") > 0.4, "{group}");
        assert!(number(group, "microseconds_per_step") > 1.0, "{group}");
        assert!(number(group, "test_accuracy_spread") >= 0.0, "{group}");
    }
    let table = fs::read_to_string(base.at("cmp/compare.txt")).expect("read");
    assert!(
        table.starts_with("2 seeds, 1 epoch of 6300 images on flex"),
        "{table}"
    );
    assert!(
        table.contains("burn") && (table.contains("never") || table.contains("1.0")),
        "{table}"
    );
    assert!(image::open(base.at("cmp/compare.png")).is_ok());
    // Again, into its own folder, with odd rates.
    let text = succeed(&mut mnist(
        &base,
        &format!("{flags} --seeds 1 --norms none --lrs 1e-300"),
    ));
    assert!(
        text.starts_with("1 seed, 1 epoch") && text.contains("\n1e-300 "),
        "{text}"
    );
}

#[test]
fn devices_are_listed() {
    let base = folder();
    let devices = report(&base, "devices");
    let devices = devices.as_array().expect("a list");
    for name in ["flex", "ndarray"] {
        assert!(
            devices
                .iter()
                .any(|device| device["name"] == name && device["kind"] == "CPU"),
            "{name}"
        );
    }
    let named = |device: &Value| {
        device["adapter"]
            .as_str()
            .is_some_and(|adapter| !adapter.is_empty())
    };
    assert!(devices.iter().all(named));
    let plain = succeed(&mut mnist(&base, "devices"));
    assert!(
        plain.contains("flex") && plain.contains("auto is "),
        "{plain}"
    );
}
