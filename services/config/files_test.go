package config_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/services/config"
)

// fileSettings is a service's configuration with everything that names files.
type fileSettings struct {
	config.Directory
	config.Source
	config.Audit
	Issuers string `env:"TOKEN_ISSUERS_FILE,required"`
	Count   int    `env:"COUNT" envDefault:"1"`
}

func (s fileSettings) Validate() error {
	return errors.Join(s.Directory.Validate(), s.Source.Validate(), s.Audit.Validate())
}

func (s fileSettings) CheckFiles() error {
	return errors.Join(s.Directory.CheckFiles(), s.Source.CheckFiles(), s.Audit.CheckFiles(),
		config.CheckIssuerFiles("SLUICE_TOKEN_ISSUERS_FILE", s.Issuers))
}

func checkConfig(t *testing.T, environ ...string) (string, error) {
	t.Helper()
	var stderr bytes.Buffer
	err := config.Run(t.Context(), "service", "about", []string{"--check-config"}, environ, &stderr,
		func(context.Context, fileSettings, io.Writer) error { t.Error("the service was started"); return nil })
	return stderr.String(), err
}

func TestCheckConfigOpensWhatTheSettingsName(t *testing.T) {
	dir := t.TempDir()
	put := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	issuers := put("issuers.yaml", "issuers: [{name: https://i.example, audiences: [a], jwks_file: "+filepath.Join(dir, "jwks.json")+"}]")
	keys := put("jwks.json", `{"keys":[{}]}`)
	access, patient := put("access.yaml", "[]"), put("Patient.ndjson", "{}")
	good := []string{
		"SLUICE_GROUPS_DIR=" + dir, "SLUICE_ACCESS_FILE=" + access, "SLUICE_SOURCE_DIR=" + dir, "SLUICE_TOKEN_ISSUERS_FILE=" + issuers,
		"SLUICE_AUDIT_LOG=" + filepath.Join(dir, "audit.ndjson"), "SLUICE_SPOOL_DIR=" + dir,
	}
	said, err := checkConfig(t, good...)
	if err != nil || said != "service: the configuration is valid\n" {
		t.Fatalf("%q, %v", said, err)
	}

	for _, file := range []string{keys, patient} {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	_, err = checkConfig(t, "SLUICE_GROUPS_DIR=/nope1", "SLUICE_ACCESS_FILE=/nope2", "SLUICE_SOURCE_DIR="+t.TempDir(),
		"SLUICE_TOKEN_ISSUERS_FILE="+issuers, "SLUICE_AUDIT_LOG=/nope3/audit", "SLUICE_SPOOL_DIR="+access,
		"SLUICE_COUNT=abc", "SLUICE_AUDIT_SYNC=true", "SLUICE_DIRECTORY_URL=mysql://h/d", "SLUICE_TYPO=1")
	if err == nil {
		t.Fatal("accepted")
	}
	for _, part := range []string{
		"SLUICE_GROUPS_DIR: ", "SLUICE_ACCESS_FILE: ", "SLUICE_SOURCE_DIR: ", "jwks_file: ", "SLUICE_AUDIT_LOG: ", "SLUICE_SPOOL_DIR: ",
		`SLUICE_COUNT must be a whole number, not "abc"`, "SLUICE_DIRECTORY_URL: ", "SLUICE_TYPO",
		"either SLUICE_DIRECTORY_URL must be set",
	} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in one round with\n%v", part, err)
		}
	}
}

func TestHelpAndVersionStartNothing(t *testing.T) {
	run := func(arg string) error {
		return config.Run(t.Context(), "service", "What it does.", []string{arg}, nil, io.Discard,
			func(context.Context, fileSettings, io.Writer) error { t.Error("the service was started"); return nil })
	}
	for arg, parts := range map[string][]string{
		"--help": {"What it does.", "--check-config", "SLUICE_TOKEN_ISSUERS_FILE", "(required)", "SLUICE_AUDIT_LOG", "stdout", "docs/configuration.md"},
		"-h":     {"SLUICE_COUNT"}, "--version": {"service ", "go1."}, "--chekc": {"-chekc", "see service --help"}, "x": {`"x"`, "--help"},
	} {
		err := run(arg)
		for _, part := range parts {
			if text, ok := config.Information(err); !strings.Contains(text, part) || ok != (arg != "--chekc" && arg != "x") {
				t.Errorf("%s: %q is not in %q", arg, part, text)
			}
		}
	}
}
