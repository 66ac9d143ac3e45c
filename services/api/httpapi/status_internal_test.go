package httpapi

import (
	"testing"
	"time"
)

func TestPollInterval(t *testing.T) {
	t.Parallel()
	for age, want := range map[time.Duration]time.Duration{
		-time.Second: time.Second, 0: time.Second, 19 * time.Second: time.Second, 45 * time.Second: 4 * time.Second,
		299 * time.Second: 29 * time.Second, 5 * time.Minute: 30 * time.Second, 24 * time.Hour: 30 * time.Second,
	} {
		if got := pollInterval(age); got != want {
			t.Errorf("age %s: %s, want %s", age, got, want)
		}
	}
}

// pitfall 30: only integers, in the unit of the dialect, and never zero, with which a client would poll without a pause.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	tests := []struct {
		unit, wait time.Duration
		want       string
	}{
		{time.Millisecond, time.Second, "1000"},
		{time.Millisecond, 30 * time.Second, "30000"},
		{time.Millisecond, 1500 * time.Microsecond, "2"},
		{time.Millisecond, 0, "1"},
		{time.Second, time.Second, "1"},
		{time.Second, 30 * time.Second, "30"},
		{time.Second, 1001 * time.Millisecond, "2"},
		{time.Second, time.Millisecond, "1"},
		{time.Second, 0, "1"},
	}
	for _, test := range tests {
		if got := inUnits(test.wait, test.unit); got != test.want {
			t.Errorf("%s, %s: %s, want %s", test.unit, test.wait, got, test.want)
		}
	}
}

// pitfall 18: the HTTP-date of RFC 9110 section 5.6.7, for a time in any zone.
func TestHTTPDate(t *testing.T) {
	t.Parallel()
	at := time.Date(1994, 11, 6, 3, 49, 37, 5e8, time.FixedZone("", -5*3600))
	if got, want := httpDate(at), "Sun, 06 Nov 1994 08:49:37 GMT"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
