package config

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/directory/filedir"
	"github.com/sluice-fhir/sluice/pkg/lines"
	"github.com/sluice-fhir/sluice/pkg/platform/configfile"
)

// The functions of this file are for --check-config: they open what the settings name and a start opens later. Empty
// settings, and those that Validate refuses, are no problem here.

// CheckFiles reads the groups and the grants.
func (d Directory) CheckFiles() error {
	var problems []error
	if d.GroupsDir != "" {
		_, err := filedir.OpenGroups(context.Background(), d.GroupsDir, nil, time.Now, slog.New(slog.DiscardHandler))
		if err != nil {
			problems = append(problems, fmt.Errorf("SLUICE_GROUPS_DIR: %w", err))
		}
	}
	if d.AccessFile != "" {
		if _, err := filedir.OpenAccess(d.AccessFile); err != nil {
			problems = append(problems, fmt.Errorf("SLUICE_ACCESS_FILE: %w", err))
		}
	}
	return errors.Join(problems...)
}

// CheckFiles lists the folder of the data, and looks for the folder of unpacked files. It reads no file.
func (s Source) CheckFiles() error {
	var problems []error
	if s.Dir != "" {
		folder, err := lines.InFolder(s.Dir)
		if err == nil && len(folder.Files) == 0 {
			err = errors.New("the folder has no file with resources (docs/data.md)")
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("SLUICE_SOURCE_DIR: %w", err))
		}
	}
	if s.SpoolDir != "" {
		problems = append(problems, checkFolder("SLUICE_SPOOL_DIR", s.SpoolDir))
	}
	return errors.Join(problems...)
}

// CheckFiles looks for the folder of the log. It does not open the log, which the running service holds.
func (a Audit) CheckFiles() error {
	if a.Log == "" || audit.IsStdout(a.Log) {
		return nil
	}
	return checkFolder("SLUICE_AUDIT_LOG", filepath.Dir(a.Log))
}

// CheckIssuerFiles reads the key sets that a valid file of issuers names.
func CheckIssuerFiles(variable, file string) error {
	issuers, err := LoadIssuers(file)
	if err != nil {
		return nil //nolint:nilerr // reported by the validation
	}
	var problems []error
	for _, issuer := range issuers {
		if issuer.JWKSFile == "" {
			continue
		}
		var set struct {
			Keys []json.RawMessage `json:"keys"`
		}
		content, err := os.ReadFile(issuer.JWKSFile)
		if err == nil && (json.Unmarshal(content, &set) != nil || len(set.Keys) == 0) {
			err = errors.New("not a JSON Web Key Set with keys")
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: issuer %q: jwks_file: %w", variable, issuer.Name, err))
		}
	}
	return errors.Join(problems...)
}

func checkFolder(variable, dir string) error {
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is not a folder", dir)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", variable, configfile.WithoutPath(err))
	}
	return nil
}
