package envconfig_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
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
		Keys  int `env:"TEST_KEY_COUNT"`
	}
	read := filepath.Join(t.TempDir(), "count")
	if err := os.WriteFile(read, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	unfilled := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(unfilled, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var got flat
	err := envconfig.Load([]string{
		"SLUICE_TEST_UNFILLED_FILE=" + unfilled,
		"SLUICE_TEST_EMPTY=", "SLUICE_TEST_SECRET=" + secret, "SLUICE_TEST_SECRET_FILE=/" + secret,
		"SLUICE_TEST_MISSING_FILE=/nowhere/" + secret, "SLUICE_TEST_DRAIN=5", "SLUICE_TEST_OTHER_COUNT=abc",
		"SLUICE_TEST_KEY_COUNT=" + secret, "SLUICE_TEST_COUNT_FILE=" + read, "SLUICE_TEST_CUONT=" + secret, "SLUICE_TEST_TYPO_FILE=" + secret, "SLUICE_TEST",
	}, &got)
	if err == nil {
		t.Fatal("accepted")
	}
	text := err.Error()
	if strings.Contains(text, secret) {
		t.Errorf("a value is quoted: %s", text)
	}
	for _, name := range []string{
		"TEST_URL", "TEST_EMPTY", "TEST_SECRET and SLUICE_TEST_SECRET_FILE", "TEST_MISSING_FILE", "TEST_UNFILLED_FILE",
		"TEST_CUONT", "TEST_TYPO_FILE", `TEST_DRAIN must be a duration, such as 90s, 10m or 2h, not "5"`,
		`TEST_OTHER_COUNT must be a whole number, not "abc"`, "TEST_KEY_COUNT must be a whole number\n", "TEST_COUNT must be a whole number\n",
		"TEST_URL is required", "TEST_EMPTY must not be empty",
	} {
		if !strings.Contains(text+"\n", "SLUICE_"+name) {
			t.Errorf("SLUICE_%s is not named: %s", name, text)
		}
	}
	if lines := strings.Count(text, "\n"); lines != 12 {
		t.Errorf("%d problems, want 12: %s", lines, text)
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

type related struct {
	Low  int    `env:"TEST_LOW" envDefault:"2"`
	High int    `env:"TEST_HIGH" envDefault:"1"`
	URL  string `env:"TEST_URL,required"`
	Name string `env:"TEST_NAME"`
}

func (r related) Validate() error {
	var problems []error
	if r.Low > r.High {
		problems = append(problems, errors.New("SLUICE_TEST_LOW must be below SLUICE_TEST_HIGH"))
	}
	if !strings.HasPrefix(r.URL, "http") {
		problems = append(problems, errors.New("SLUICE_TEST_URL must be a URL"))
	}
	return errors.Join(errors.Join(problems...), errors.New("SLUICE_TEST_NAME is too short"))
}

// Problems that need several variables are reported in the same round, those of an absent or malformed one once.
func TestLoadReportsEverythingInOneRound(t *testing.T) {
	for text, row := range map[string]struct{ with, without []string }{
		"":                  {[]string{"TEST_LOW must be below", "TEST_URL is required", "TEST_NAME is too short"}, []string{"must be a URL"}},
		"SLUICE_TEST_LOW=x": {[]string{"TEST_LOW must be a whole number", "TEST_NAME is too short"}, []string{"must be below"}},
		"SLUICE_TEST_URL=x": {[]string{"must be a URL", "must be below"}, []string{"is required"}},
	} {
		var got related
		err := envconfig.Load([]string{text}, &got)
		if err == nil {
			t.Fatal("accepted")
		}
		for _, part := range row.with {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q: %v, want %q", text, err, part)
			}
		}
		for _, part := range row.without {
			if strings.Contains(err.Error(), part) {
				t.Errorf("%q: %v, do not want %q", text, err, part)
			}
		}
	}
}

func TestSettingsHaveDefaults(t *testing.T) {
	got, err := envconfig.Settings(&related{})
	want := []envconfig.Setting{
		{Variable: "SLUICE_TEST_LOW", Default: "2"}, {Variable: "SLUICE_TEST_HIGH", Default: "1"},
		{Variable: "SLUICE_TEST_URL", Required: true}, {Variable: "SLUICE_TEST_NAME"},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestLoadRefusesNonStructs(t *testing.T) {
	var text string
	if err := envconfig.Load(nil, &text); err == nil {
		t.Error("accepted a string")
	}
}
