package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"

	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/synth"
)

// generate writes the data into the folder: a synthetic population, and a document that does not compress, so that its file
// is uploaded in two parts.
func generate(ctx context.Context, dir string, patients int) error {
	if _, err := synth.Generate(ctx, synth.Config{Dir: dir, Patients: patients, Seed: 1}); err != nil {
		return err
	}
	people, err := os.ReadFile(filepath.Join(dir, "Patient.ndjson"))
	if err != nil {
		return err
	}
	first := regexp.MustCompile(`"id":"([^"]+)"`).FindSubmatch(people)
	if first == nil {
		return errors.New("the population has no patient")
	}
	content := make([]byte, objects.MinPartSize*11/10)
	noise := rand.NewChaCha8([32]byte{})
	_, _ = noise.Read(content) // it never fails
	line := fmt.Sprintf(`{"resourceType":"DocumentReference","id":"large","meta":{"versionId":"1","lastUpdated":%q},`+
		`"status":"current","subject":{"reference":"Patient/%s"},`+
		`"content":[{"attachment":{"contentType":"application/octet-stream","data":"%s"}}]}`,
		"2020-01-01T00:00:00Z", first[1], base64.StdEncoding.EncodeToString(content))
	return os.WriteFile(filepath.Join(dir, "large.ndjson"), []byte(line+"\n"), 0o600)
}
