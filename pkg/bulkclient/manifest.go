package bulkclient

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"strings"
	"time"
)

// Manifest lists the files of a finished export (spec 3).
type Manifest struct {
	TransactionTime     string `json:"transactionTime"`
	Request             string `json:"request"`
	RequiresAccessToken bool   `json:"requiresAccessToken"`
	Output              []Item `json:"output"`
	Deleted             []Item `json:"deleted"`
	Error               []Item `json:"error"`
}

// Item is one file of a manifest.
type Item struct {
	Type  string      `json:"type"`
	URL   string      `json:"url"`
	Count *int64      `json:"count,omitempty"` // lines; nil when unknown
	Local *StoredFile `json:"local,omitempty"` // only in the manifest.json of a folder: the downloaded file
}

// items returns the items of all lists: output, deleted, error.
func (m *Manifest) items() []*Item {
	var all []*Item
	for _, list := range [][]Item{m.Output, m.Deleted, m.Error} {
		for i := range list {
			all = append(all, &list[i])
		}
	}
	return all
}

// readManifest decodes a manifest, and refuses a document that lacks a required member with ErrMismatch: a proxy or another
// server may send any document with a 200, which must not be mistaken for the manifest of an export without files.
func readManifest(text []byte, manifest any) error {
	var required struct {
		Manifest
		RequiresAccessToken *bool `json:"requiresAccessToken"`
	}
	if err := errors.Join(json.Unmarshal(text, &required), json.Unmarshal(text, manifest)); err != nil {
		return fmt.Errorf("%w: not a manifest: %w", ErrMismatch, err)
	}
	_, err := time.Parse(time.RFC3339, required.TransactionTime)
	for _, member := range []struct {
		name  string
		valid bool
	}{
		{"transactionTime", err == nil},
		{"request", required.Request != ""},
		{"requiresAccessToken", required.RequiresAccessToken != nil},
		{"output", required.Output != nil},
		{"error", required.Error != nil},
	} {
		if !member.valid {
			return fmt.Errorf("%w: not a manifest: %s is missing or invalid", ErrMismatch, member.name)
		}
	}
	return nil
}

// List is one of the file lists of a manifest.
type List string

// The lists of a manifest.
const (
	ListOutput  List = "output"
	ListDeleted List = "deleted"
	ListError   List = "error"
)

// File is one file of an export, and its name in the folder.
type File struct {
	List  List
	Type  string // resource type of every line
	URL   string // absolute
	Count int64  // lines, -1 when unknown
	Name  string // of the finished file without .gz, as Patient.1.ndjson: safe, and unique in the folder
}

var (
	safeName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$`)
	safeType = regexp.MustCompile(`^[A-Z][A-Za-z]{0,63}$`)
)

// files lists the files of a manifest: output, deleted, error. Their names are the last segments of their URLs. A name
// that could be anything but a plain file in the folder is refused.
func files(manifest *Manifest) ([]File, error) {
	var found []File
	taken, listed := make(map[string]bool), make(map[string]bool)
	for _, list := range []struct {
		name  List
		items []Item
	}{{ListOutput, manifest.Output}, {ListDeleted, manifest.Deleted}, {ListError, manifest.Error}} {
		for i, item := range list.items {
			file, err := fileOf(list.name, item)
			if err != nil {
				return nil, fmt.Errorf("%s[%d] of the manifest: %w", list.name, i, err)
			}
			// Names that differ only in case are one file on some disks. The suffix depends on the URL alone, so a
			// name stays the same in a later run, whatever the order of the manifest.
			if taken[strings.ToLower(file.Name)] {
				sum := sha256.Sum256([]byte(file.URL))
				file.Name = strings.TrimSuffix(file.Name, ".ndjson") + "-" + hex.EncodeToString(sum[:6]) + ".ndjson"
			}
			lower := strings.ToLower(file.Name)
			if taken[lower] || listed[file.URL] {
				return nil, fmt.Errorf("%s[%d] of the manifest: the file is listed twice", list.name, i)
			}
			taken[lower], listed[file.URL] = true, true
			found = append(found, file)
		}
	}
	return found, nil
}

func fileOf(list List, item Item) (File, error) {
	if !safeType.MatchString(item.Type) {
		return File{}, fmt.Errorf("the type %q is not the name of a resource type", printable(item.Type))
	}
	location, err := url.Parse(item.URL)
	if err != nil || !isWeb(location) {
		return File{}, fmt.Errorf("the URL of a file of type %s is not an absolute http URL", item.Type)
	}
	// The segment is cut out before it is decoded, so that safeName refuses an encoded slash.
	name, err := url.PathUnescape(path.Base(location.EscapedPath()))
	if err != nil || !safeName.MatchString(name) || strings.Contains(name, "..") {
		return File{}, fmt.Errorf("%q is not a safe name for a file", printable(name))
	}
	name = strings.TrimSuffix(strings.TrimSuffix(name, ".gz"), ".ndjson") + ".ndjson"
	file := File{List: list, Type: item.Type, URL: item.URL, Count: -1, Name: name}
	if item.Count != nil {
		file.Count = *item.Count
	}
	return file, nil
}
