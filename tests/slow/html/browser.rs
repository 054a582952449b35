//! A headless Chromium, driven through chromedriver, that opens one page and is gone when its test ends.
//! Knows nothing of what is on the page.

use std::future::Future;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fantoccini::wd::{Capabilities, WebDriverCompatibleCommand};
use fantoccini::{Client, ClientBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long a condition may take to come true before the test fails. No test waits this long when it passes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Flags that keep Chromium headless, off the network and away from anybody's profile.
const FLAGS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
];

/// A running chromedriver; stopped when it is dropped.
struct Driver {
    process: Child,
    address: String,
}

impl Driver {
    /// Starts one on a port that it chooses itself.
    fn start() -> Driver {
        let mut process = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("failed to start chromedriver: install chromium and chromium-driver");
        let lines = BufReader::new(process.stdout.take().expect("its output is piped")).lines();
        let port = lines.map_while(Result::ok).find_map(|line| {
            let (_, port) = line.split_once("started successfully on port ")?;
            port.trim_end_matches('.').parse::<u16>().ok()
        });
        let Some(port) = port else {
            let _ = process.kill();
            let _ = process.wait();
            panic!("chromedriver did not say which port it listens on");
        };
        Driver {
            process,
            address: format!("http://127.0.0.1:{port}"),
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The one tab of a browser.
#[derive(Clone)]
pub struct Tab {
    client: Client,
}

/// Opens the page in a new browser with an empty profile, runs the test on it, and closes the browser whatever the
/// test does. Fails as well when the page logged an error or asked for anything but itself.
pub async fn with_page<Test, Done>(page: PathBuf, test: Test)
where
    Test: FnOnce(Tab) -> Done,
    Done: Future<Output = ()> + Send + 'static,
{
    with_address(format!("file://{}", page.display()), test).await;
}

/// The same for a page that is served.
pub async fn with_address<Test, Done>(address: String, test: Test)
where
    Test: FnOnce(Tab) -> Done,
    Done: Future<Output = ()> + Send + 'static,
{
    let driver = Driver::start();
    let profile = tempfile::tempdir().expect("a directory for the profile");
    let client = ClientBuilder::new(HttpConnector::new())
        .capabilities(capabilities(&profile))
        .connect(&driver.address)
        .await
        .expect("failed to start chromium");
    let tab = Tab {
        client: client.clone(),
    };
    let body = {
        let opened = tab.clone();
        let address = address.clone();
        let run = test(tab.clone());
        tokio::spawn(async move {
            // Also asks for no motion: clicks need not wait for a page that is still scrolling.
            opened.prefer("light").await;
            opened.go(&address).await;
            run.await;
            opened.assert_quiet(&address).await;
        })
    };
    let outcome = body.await;
    client.close().await.expect("the browser closes");
    if let Err(failed) = outcome {
        std::panic::resume_unwind(failed.into_panic());
    }
}

fn capabilities(profile: &TempDir) -> Capabilities {
    let directory = format!("--user-data-dir={}", profile.path().display());
    let flags: Vec<&str> = FLAGS.into_iter().chain([directory.as_str()]).collect();
    let wanted = json!({
        "goog:chromeOptions": {"args": flags},
        "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
    });
    wanted.as_object().cloned().expect("an object")
}

impl Tab {
    /// Opens an address and waits until the page's scripts have run.
    pub async fn go(&self, address: &str) {
        self.client.goto(address).await.expect("the page opens");
        self.wait("document.documentElement.dataset.ready === 'true'")
            .await;
    }

    /// The value of a JavaScript expression.
    pub async fn get(&self, expression: &str) -> Value {
        let script = format!("return {expression};");
        self.client
            .execute(&script, Vec::new())
            .await
            .unwrap_or_else(|error| panic!("{expression}: {error}"))
    }

    /// The value of an expression that gives text.
    pub async fn text(&self, expression: &str) -> String {
        let value = self.get(expression).await;
        value
            .as_str()
            .unwrap_or_else(|| panic!("{expression} gives {value}, not text"))
            .to_owned()
    }

    /// Waits until an expression is true.
    pub async fn wait(&self, expression: &str) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.get(&format!("Boolean({expression})")).await != Value::Bool(true) {
            assert!(
                tokio::time::Instant::now() < deadline,
                "never came true: {expression}"
            );
            // Gives the processor back between two looks; the condition alone decides when to go on.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Clicks the middle of the element that a selector names, as a person would: where nothing covers it.
    pub async fn click(&self, selector: &str) {
        self.bring_into_view(selector).await;
        let element = self.element(selector).await;
        element
            .click()
            .await
            .unwrap_or_else(|error| panic!("{selector}: {error}"));
    }

    /// Types into the element that a selector names; special keys are those of `fantoccini::key`.
    pub async fn type_into(&self, selector: &str, keys: &str) {
        let element = self.element(selector).await;
        element
            .send_keys(keys)
            .await
            .unwrap_or_else(|error| panic!("{selector}: {error}"));
    }

    /// Empties a field the way a person does, so that the page hears of it.
    pub async fn clear(&self, selector: &str) {
        self.get(&format!(
            "(field => {{ field.value = ''; field.dispatchEvent(new Event('input')); }})(document.querySelector('{selector}'))"
        ))
        .await;
    }

    async fn element(&self, selector: &str) -> fantoccini::elements::Element {
        let locator = fantoccini::Locator::Css(selector);
        self.client
            .find(locator)
            .await
            .unwrap_or_else(|error| panic!("{selector}: {error}"))
    }

    async fn bring_into_view(&self, selector: &str) {
        let scroll = "scrollIntoView({block: 'center'})";
        self.get(&format!("document.querySelector(`{selector}`).{scroll}"))
            .await;
    }

    /// Moves the mouse to a place inside of an element, given as parts of its width and height.
    pub async fn hover(&self, selector: &str, across: f64, down: f64) {
        self.bring_into_view(selector).await;
        self.mouse("mouseMoved", selector, across, down).await;
    }

    /// Presses the mouse at one place of an element, moves to another and releases.
    pub async fn drag(&self, selector: &str, from: (f64, f64), to: (f64, f64)) {
        self.bring_into_view(selector).await;
        self.mouse("mouseMoved", selector, from.0, from.1).await;
        self.mouse("mousePressed", selector, from.0, from.1).await;
        self.mouse("mouseMoved", selector, to.0, to.1).await;
        self.mouse("mouseReleased", selector, to.0, to.1).await;
    }

    /// Clicks at a place inside of an element.
    pub async fn click_at(&self, selector: &str, across: f64, down: f64) {
        self.drag(selector, (across, down), (across, down)).await;
    }

    async fn mouse(&self, kind: &str, selector: &str, across: f64, down: f64) {
        let place = self
            .get(&format!(
                "(box => ({{x: box.left + box.width * {across}, y: box.top + box.height * {down}}}))(document.querySelector('{selector}').getBoundingClientRect())"
            ))
            .await;
        let held = if kind == "mouseMoved" {
            json!({})
        } else {
            json!({"button": "left", "clickCount": 1})
        };
        let mut event = json!({"type": kind, "x": place["x"], "y": place["y"]});
        event
            .as_object_mut()
            .expect("an object")
            .extend(held.as_object().cloned().expect("an object"));
        self.devtools("Input.dispatchMouseEvent", event).await;
    }

    /// Makes the browser a phone of this width and height in CSS pixels, with a sharp screen.
    pub async fn be_a_phone(&self, width: u32, height: u32) {
        let screen =
            json!({"width": width, "height": height, "deviceScaleFactor": 2, "mobile": true});
        self.devtools("Emulation.setDeviceMetricsOverride", screen)
            .await;
    }

    /// Makes the system ask for a colour scheme, `light` or `dark`.
    pub async fn prefer(&self, scheme: &str) {
        let features = json!({"features": [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]});
        self.devtools("Emulation.setEmulatedMedia", features).await;
    }

    /// The page on paper, as a PDF.
    pub async fn print(&self) -> Vec<u8> {
        let printed = self
            .devtools("Page.printToPDF", json!({"printBackground": true}))
            .await;
        decode(&printed)
    }

    /// Saves a picture of the whole page as `name`.png in the directory that MEMLEAK_SCREENSHOTS names, if it is set.
    pub async fn shot(&self, name: &str) {
        self.save_picture(name, true).await;
    }

    /// Like `shot`, but only what the window shows.
    pub async fn shot_of_window(&self, name: &str) {
        self.save_picture(name, false).await;
    }

    async fn save_picture(&self, name: &str, whole: bool) {
        let Some(directory) = std::env::var_os("MEMLEAK_SCREENSHOTS") else {
            return;
        };
        let picture = self
            .devtools(
                "Page.captureScreenshot",
                json!({"captureBeyondViewport": whole}),
            )
            .await;
        let file = PathBuf::from(directory).join(format!("{name}.png"));
        std::fs::write(&file, decode(&picture)).expect("the picture is written");
    }

    /// Whether the page shows a dialog, such as an alert.
    pub async fn shows_dialog(&self) -> bool {
        self.client.get_alert_text().await.is_ok()
    }

    /// Fails when the page logged anything, or asked for anything but itself.
    async fn assert_quiet(&self, address: &str) {
        let logged = self.log("browser").await;
        assert!(logged.is_empty(), "the page logged: {logged:#?}");
        let asked: Vec<String> = self
            .log("performance")
            .await
            .iter()
            .filter_map(|entry| request_of(entry, address))
            .collect();
        let others: Vec<_> = asked
            .iter()
            .filter(|url| *url != address && !url.starts_with("data:"))
            .collect();
        assert!(others.is_empty(), "the page asked for {others:?}");
        assert!(!asked.is_empty(), "requests are not being watched");
        let resources = self
            .get("performance.getEntriesByType('resource').map(entry => entry.name).filter(name => name !== location.href)")
            .await;
        assert_eq!(resources, json!([]), "the page fetched something");
    }

    async fn log(&self, kind: &str) -> Vec<Value> {
        let entries = self.issue("se/log", json!({"type": kind})).await;
        entries.as_array().cloned().expect("a list of entries")
    }

    async fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.issue(
            "goog/cdp/execute",
            json!({"cmd": command, "params": parameters}),
        )
        .await
    }

    async fn issue(&self, path: &'static str, body: Value) -> Value {
        let what = format!("{path} {body}");
        let extension = Extension { path, body };
        self.client
            .issue_cmd(extension)
            .await
            .unwrap_or_else(|error| panic!("{what}: {error}"))
    }
}

/// The address that the document at `page` asked for, when that is what an entry of the performance log is about.
fn request_of(entry: &Value, page: &str) -> Option<String> {
    let message: Value = serde_json::from_str(entry["message"].as_str()?).ok()?;
    let message = &message["message"];
    let parameters = &message["params"];
    let asks = message["method"] == "Network.requestWillBeSent";
    (asks && parameters["documentURL"] == page)
        .then(|| parameters["request"]["url"].as_str().map(str::to_owned))
        .flatten()
}

fn decode(answer: &Value) -> Vec<u8> {
    use base64::Engine as _;
    let data = answer["data"].as_str().expect("the answer holds data");
    base64::engine::general_purpose::STANDARD
        .decode(data)
        .expect("the data is base64")
}

/// A command of chromedriver beyond the standard.
#[derive(Debug)]
struct Extension {
    path: &'static str,
    body: Value,
}

impl WebDriverCompatibleCommand for Extension {
    fn endpoint(
        &self,
        base: &url::Url,
        session: Option<&str>,
    ) -> Result<url::Url, url::ParseError> {
        base.join(&format!(
            "session/{}/{}",
            session.unwrap_or_default(),
            self.path
        ))
    }

    fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(self.body.to_string()))
    }
}
