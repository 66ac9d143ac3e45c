package envconfig_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/platform/envconfig"
)

type config struct {
	Section
	Drain time.Duration `env:"TEST_DRAIN" envDefault:"10s"`
	Count int           `env:"TEST_COUNT" envDefault:"3"`
}

// Section has a field with the same name as one of config: problems must name the variable.
type Section struct {
	Count int `env:"TEST_OTHER_COUNT" envDefault:"4"`
}

var errIncoherent = errors.New("the count must not be 13")

func (c config) Validate() error {
	if c.Count == 13 {
		return errIncoherent
	}
	return nil
}

func TestLoad(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("from file\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	type flat struct {
		URL    string        `env:"TEST_URL,required,notEmpty"`
		Secret string        `env:"TEST_SECRET"`
		Drain  time.Duration `env:"TEST_DRAIN" envDefault:"10s"`
	}
	var got flat
	err := envconfig.Load([]string{
		"PATH=/bin", "OTHER_SLUICE_X=1", "SLUICE_TEST_URL=http://x/?a=b", "SLUICE_TEST_SECRET_FILE=" + file,
	}, &got)
	if want := (flat{URL: "http://x/?a=b", Secret: "from file", Drain: 10 * time.Second}); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
}

func TestLoadReportsEveryProblemWithoutValues(t *testing.T) {
	const secret = "hunter2"
	type flat struct {
		URL      string        `env:"TEST_URL,required,notEmpty"`
		Empty    string        `env:"TEST_EMPTY,notEmpty"`
		Secret   string        `env:"TEST_SECRET"`
		Missing  string        `env:"TEST_MISSING"`
		Unfilled string        `env:"TEST_UNFILLED"`
		Drain    time.Duration `env:"TEST_DRAIN"`
		Section
		Count int `env:"TEST_COUNT"`
	}
	unfilled := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(unfilled, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var got flat
	err := envconfig.Load([]string{
		"SLUICE_TEST_UNFILLED_FILE=" + unfilled,
		"SLUICE_TEST_EMPTY=", "SLUICE_TEST_SECRET=" + secret, "SLUICE_TEST_SECRET_FILE=/" + secret,
		"SLUICE_TEST_MISSING_FILE=/nowhere/" + secret, "SLUICE_TEST_DRAIN=" + secret, "SLUICE_TEST_OTHER_COUNT=" + secret,
		"SLUICE_TEST_COUNT=" + secret, "SLUICE_TEST_CUONT=" + secret, "SLUICE_TEST_TYPO_FILE=" + secret, "SLUICE_TEST",
	}, &got)
	if err == nil {
		t.Fatal("accepted")
	}
	text := err.Error()
	if strings.Contains(text, secret) {
		t.Errorf("a value is quoted: %s", text)
	}
	for _, name := range []string{
		"TEST_URL", "TEST_EMPTY", "TEST_SECRET and SLUICE_TEST_SECRET_FILE", "TEST_MISSING_FILE", "TEST_UNFILLED_FILE", "TEST_DRAIN",
		"TEST_OTHER_COUNT", "TEST_COUNT", "TEST_CUONT", "TEST_TYPO_FILE",
	} {
		if !strings.Contains(text, "SLUICE_"+name) {
			t.Errorf("SLUICE_%s is not named: %s", name, text)
		}
	}
	if lines := strings.Count(text, "\n"); lines != 11 {
		t.Errorf("%d problems, want 11: %s", lines, text)
	}
}

func TestLoadValidates(t *testing.T) {
	var got config
	err := envconfig.Load([]string{"SLUICE_TEST_COUNT=13", "SLUICE_TEST_OTHER_COUNT=1"}, &got)
	if !errors.Is(err, errIncoherent) || got.Section.Count != 1 {
		t.Errorf("got %+v, %v; want %v", got, err, errIncoherent)
	}
	if err := envconfig.Load(nil, &got); err != nil || got.Count != 3 || got.Section.Count != 4 {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestLoadRefusesNonStructs(t *testing.T) {
	var text string
	if err := envconfig.Load(nil, &text); err == nil {
		t.Error("accepted a string")
	}
}
