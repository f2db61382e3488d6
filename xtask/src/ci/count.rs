//! The count of a run of tests, summed over the `test result:` lines of its programs. It knows libtest's form only.

use std::fmt;

/// How many tests passed, failed and were skipped.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Count {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
}

impl Count {
    /// Adds a line of output, when it is a program's result.
    pub(crate) fn read(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result:") else { return };
        for part in result.split(['.', ';']) {
            let mut words = part.split_whitespace();
            let (Some(number), Some(what)) = (words.next().and_then(|word| word.parse::<u64>().ok()), words.next())
            else {
                continue;
            };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_programs_are_summed() {
        let mut count = Count::default();
        let output = "running 3 tests\ntest a ... ok\n\
            test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
            test result: \u{1b}[31mFAILED\u{1b}[0m. 3 passed; 2 failed; 0 ignored; 4 measured; 9 filtered out; finished in 1.50s\n";
        output.lines().for_each(|line| count.read(line));
        assert_eq!(count, Count { passed: 15, failed: 2, skipped: 1 });
        assert_eq!(count.to_string(), "15 passed, 2 failed, 1 skipped");
    }

    #[test]
    fn other_lines_count_nothing() {
        let mut count = Count::default();
        ["", "test passed ... ok", "5 passed; 1 failed", "test result: ok.", "a test result: ok. 2 passed;"]
            .iter()
            .for_each(|line| count.read(line));
        assert_eq!(count, Count::default());
    }
}
