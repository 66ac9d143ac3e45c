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
	Subject  string `json:"subject"`  // a subject of the development issuer that may export the group
	Scope    string `json:"scope"`
	State    string `json:"state"`
	Group    string `json:"group,omitempty"`        // a group of the data; empty: no subject may export any
	Operator string `json:"operator_url,omitempty"` // URL of the operator's page; empty: not served

	command string   // the command line, as a shell finds it
	data    contents // what was read
	plain   bool     // tokens and data pass the network in clear text
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

// print prints what is served and the next steps.
func (q quickstart) print(w io.Writer) error {
	var text strings.Builder
	fmt.Fprintf(&text, "Sluice serves FHIR Bulk Data at %s\n%s", q.BaseURL, q.data)
	if q.plain {
		text.WriteString("Warning: this is plain HTTP beyond this machine: the network sees tokens and data. Use --tls-cert " +
			"and --tls-key.\n")
	}
	switch {
	case q.Group != "":
		fmt.Fprintf(&text, strings.TrimRight(`
Export a group with the command line:
  %[6]s export --base %[1]s --group %[4]s --state %[2]s --out export

Or with curl, step by step:
  TOKEN=$(%[6]s token --state %[2]s --subject %[3]s --scope '%[5]s' --ttl 1h)
  STATUS=$(curl -fsS -D - -o /dev/null -H "Authorization: Bearer $TOKEN" '%[1]s/Group/%[4]s/$export' \
    | tr -d '\r' | sed -n 's/^[Cc]ontent-[Ll]ocation: //p'); echo "$STATUS"
  curl -fsS -i -H "Authorization: Bearer $TOKEN" "$STATUS"    # 202 while it runs, 200 with the manifest
  curl -fsS -H "Authorization: Bearer $TOKEN" FILE-URL        # each file that the manifest lists
  curl -fsS -i -X DELETE -H "Authorization: Bearer $TOKEN" "$STATUS"
`, " "), q.BaseURL, quoted(q.State), quoted(q.Subject), q.Group, q.Scope, quoted(q.command))
	case len(q.data.groups) > 0:
		fmt.Fprintf(&text, "Warning: %v, so there is no example. Clients of --clients may export what their grants allow.\n",
			errNoExample)
	}
	if q.Operator != "" {
		fmt.Fprintf(&text, "\nOperator's page: %s\n", q.Operator)
	}
	text.WriteString("\nStop with Ctrl-C. A restart continues with the same exports, as long as the data is the same.\n")
	_, err := io.WriteString(w, text.String())
	return err
}

// quoted returns the text as one word of a shell.
func quoted(text string) string {
	if text != "" && strings.Trim(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+:@%,=") == "" {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
