TAGS := remote containers_image_openpgp exclude_graphdriver_btrfs

build:
	CGO_ENABLED=0 go build -trimpath -tags "$(TAGS)" -o bin/sluice ./cmd/sluice
