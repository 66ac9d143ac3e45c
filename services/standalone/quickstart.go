package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// demoSubject may export everything unless there is an access file.
const demoSubject = "demo"

const demoScope = "system/*.rs"

// quickstart is what a client needs. It is written to STATE/quickstart.json when the server is ready.
type quickstart struct {
	BaseURL  string `json:"base_url"` // the FHIR base
	Subject  string `json:"subject"`  // a subject that may export everything, unless --access was given
	Scope    string `json:"scope"`
	State    string `json:"state"`
	Group    string `json:"group,omitempty"`        // a group to export
	Operator string `json:"operator_url,omitempty"` // URL of the operator's page; empty: not served
}

// write writes the file atomically: clients wait for it.
func (q quickstart) write() error {
	text, err := json.MarshalIndent(q, "", "  ")
	if err != nil {
		return fmt.Errorf("write quickstart: %w", err)
	}
	path := filepath.Join(q.State, "quickstart.json")
	if err := os.WriteFile(path+".new", append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("write quickstart: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write quickstart: %w", err)
	}
	return nil
}

func (q quickstart) remove() error {
	err := os.Remove(filepath.Join(q.State, "quickstart.json"))
	if err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("remove quickstart: %w", err)
	}
	return nil
}

// print prints the next steps.
func (q quickstart) print(w io.Writer) error {
	page := ""
	if q.Operator != "" {
		page = "Operator's page: " + q.Operator + "\n\n"
	}
	_, err := fmt.Fprintf(w, strings.TrimLeft(`
Sluice serves FHIR Bulk Data at %[1]s

Export a group with the command line:
  bin/sluice export --base %[1]s --group %[4]s --state %[2]s --out export

Or with curl, step by step:
  TOKEN=$(bin/sluice token --state %[2]s --subject %[3]s --scope '%[5]s' --ttl 1h)
  STATUS=$(curl -s -D - -o /dev/null -H "Authorization: Bearer $TOKEN" '%[1]s/Group/%[4]s/$export' \
    | tr -d '\r' | sed -n 's/^[Cc]ontent-[Ll]ocation: //p')
  curl -s -i -H "Authorization: Bearer $TOKEN" "$STATUS"      # 202 while it runs, 200 with the manifest
  curl -s -H "Authorization: Bearer $TOKEN" FILE-URL          # each file that the manifest lists
  curl -s -i -X DELETE -H "Authorization: Bearer $TOKEN" "$STATUS"

%[6]sStop with Ctrl-C.
`, "\n"), q.BaseURL, q.State, q.Subject, q.Group, q.Scope, page)
	return err
}
