package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/services/e2e/check"
)

// TestAttachmentsCanBeRead: an encrypted export from PostgreSQL. The url of each attachment is readable with the token of
// the export, and not without (A-03, A-04, L-12).
func TestAttachmentsCanBeRead(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	var text strings.Builder
	text.WriteString(`{"resourceType":"Patient","id":"p"}` + "\n" + `{"resourceType":"Patient","id":"stranger"}` + "\n")
	const group = `{"resourceType":"Group","id":"all","type":"person","actual":true,"member":[{"entity":{"reference":"Patient/p"}}]}`
	check.Must(t, os.WriteFile(filepath.Join(data, "Group.ndjson"), []byte(group+"\n"), 0o600))
	contents := map[string]string{}
	const documents = 20
	for i := range documents {
		id := fmt.Sprintf("d%d", i)
		contents[id] = strings.Repeat(id+" ", 1+i*1000)
		owner := "p"
		if i == 0 {
			owner = "stranger"
		}
		fmt.Fprintf(&text, `{"resourceType":"Binary","id":"b-%s","contentType":"text/plain","securityContext":{"reference":"Patient/%s"},`+
			`"data":%q}`+"\n", id, owner, base64.StdEncoding.EncodeToString([]byte(contents[id])))
		fmt.Fprintf(&text, `{"resourceType":"DocumentReference","id":%q,"status":"current","subject":{"reference":"Patient/p"},`+
			`"content":[{"attachment":{"contentType":"text/plain","url":"Binary/b-%s"}}]}`+"\n", id, id)
	}
	check.Must(t, os.WriteFile(filepath.Join(data, "all.ndjson"), []byte(text.String()), 0o600))
	keys := masterKeys(t, map[string]string{}, "a")
	s := deploy(t, setup{
		data: data, database: loaded(t, data), workers: 1, api: []string{keys}, worker: []string{keys, "SLUICE_FILE_BYTES=20000"},
	})
	status := s.kickoff("all", "?_type=DocumentReference")
	m := s.wait(status, 2*time.Minute)
	lines := s.lines(m.Output)["DocumentReference"]
	if len(lines) != documents || len(s.lines(m.Error)["OperationOutcome"]) != 1 {
		t.Fatalf("%d lines, errors %+v", len(lines), m.Error)
	}
	var last string
	for _, line := range lines {
		var document struct {
			ID      string
			Content []struct{ Attachment struct{ URL string } }
		}
		check.Must(t, json.Unmarshal([]byte(line), &document))
		url := document.Content[0].Attachment.URL
		if document.ID == "d0" {
			if url != "" || !strings.Contains(line, "masked") {
				t.Errorf("the content of another patient: %s", line)
			}
			continue
		}
		resp := s.request(http.MethodGet, url, "everything", nil)
		body, err := io.ReadAll(resp.Body)
		if check.Must(t, err); resp.StatusCode != http.StatusOK || string(body) != contents[document.ID] ||
			resp.Header.Get("Content-Type") != "text/plain" {
			t.Errorf("%s of %s: %s, %d bytes", url, document.ID, resp.Status, len(body))
		}
		last = url
	}
	if resp := s.request(http.MethodGet, last, "other", nil); resp.StatusCode != http.StatusNotFound {
		t.Errorf("another subject: %s", resp.Status)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, last, nil)
	check.Must(t, err)
	resp, err := s.client.Do(req)
	check.Must(t, err)
	if check.Must(t, resp.Body.Close()); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a token: %s", resp.Status)
	}
	if resp := s.request(http.MethodDelete, status, "everything", nil); resp.StatusCode != http.StatusAccepted {
		t.Errorf("DELETE: %s", resp.Status)
	}
	check.Eventually(t, time.Minute, "the objects are deleted", func() bool { return len(s.objectKeys()) == 0 })
}
