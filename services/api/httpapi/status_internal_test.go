package httpapi

import (
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
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
		dialect export.Dialect
		wait    time.Duration
		want    string
	}{
		{export.Classic, time.Second, "1000"},
		{export.Classic, 30 * time.Second, "30000"},
		{export.Classic, 1500 * time.Microsecond, "2"},
		{export.Classic, 0, "1"},
		{export.IG, time.Second, "1"},
		{export.IG, 30 * time.Second, "30"},
		{export.IG, 1001 * time.Millisecond, "2"},
		{export.IG, time.Millisecond, "1"},
		{export.IG, 0, "1"},
	}
	for _, test := range tests {
		if got := retryAfter(test.dialect, test.wait); got != test.want {
			t.Errorf("%s, %s: %s, want %s", test.dialect, test.wait, got, test.want)
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
