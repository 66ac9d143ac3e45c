package testenv

import (
	"os"
	"strconv"
	"testing"
)

// Seeds returns how many random histories a test runs: few, or as many as SLUICE_TEST_SEEDS says.
func Seeds(t testing.TB, few int) int {
	t.Helper()
	text := os.Getenv("SLUICE_TEST_SEEDS")
	if text == "" {
		return few
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatal("SLUICE_TEST_SEEDS is not a number of seeds")
	}
	return n
}
