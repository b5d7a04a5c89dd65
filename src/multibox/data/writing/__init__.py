"""Writers of annotated images: VOC's XML, COCO's JSON, YOLO's text files and CSV."""
