package bulkclient

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"strings"
)

// List says which list of the manifest a file stands in.
type List string

// The lists of a manifest.
const (
	Output  List = "output"
	Deleted List = "deleted"
	Errors  List = "error"
)

// File is one file of an export, and its place in the folder.
type File struct {
	List  List
	Type  string // resource type of every line
	URL   string // absolute
	Count int64  // lines, -1 when the server does not say
	Name  string // of the finished file without .gz, as Patient.1.ndjson: safe, and unique in the folder
}

var (
	safeName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$`)
	safeType = regexp.MustCompile(`^[A-Z][A-Za-z]{0,63}$`)
)

// files lists the files of a manifest with names that are made from the last segment of their URLs. Any name that
// could mean more than a plain file in the folder is refused, not mended: an honest server has no such names.
func files(manifest *Manifest) ([]File, error) {
	var found []File
	taken, listed := make(map[string]bool), make(map[string]bool)
	for _, list := range []struct {
		name  List
		items []Item
	}{{Output, manifest.Output}, {Deleted, manifest.Deleted}, {Errors, manifest.Error}} {
		for i, item := range list.items {
			file, err := fileOf(list.name, item)
			if err != nil {
				return nil, fmt.Errorf("%s[%d] of the manifest: %w", list.name, i, err)
			}
			// Names that differ only in case are one file on some disks; a name that the URL decides stays the
			// same in a later run, whatever order the manifest has then.
			if lower := strings.ToLower(file.Name); taken[lower] {
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
	// Decoded only after it was cut out, so that an encoded slash cannot hide in it: safeName refuses it.
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
